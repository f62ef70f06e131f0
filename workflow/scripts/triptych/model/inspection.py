"""What the model step asks of a model, so that no later job finds out: it opens, it computes, it can be asked.

Every fault is one line. Doubts about the prompt are warnings.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from triptych.errors import TriptychError, message_of
from triptych.io.manifest import read_json
from triptych.model import language_model, vision
from triptych.model.architectures import architecture, context_tokens, sliding_window
from triptych.model.encoders import encoder_kind
from triptych.model.preprocessing import PROCESSOR
from triptych.model.tokens import Reader
from triptych.utils.device import free_memory

CPU = torch.device("cpu")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them holds the vocabulary
MARKS = re.compile(r"<\|[^|<>\s]+\|>|</?s>|<bos>|<eos>|<(?:start|end)_of_turn>|\[/?INST\]")  # of turns, in any family
ROOM = 0.8  # of the free memory: what a model may take for the pass of one token


def inspect_language_model(folder: Path, prompt: str) -> list[str]:
    """Open a language model's files, and compute one token.

    Args:
        folder: with configuration, weights and tokenizer.
        prompt: text of one turn, with <image> and {question}.

    Returns:
        Doubts about the prompt and the end of answers, in words.

    Raises:
        TriptychError: a file is damaged or missing, the architecture is not supported, or the prompt does not fit.
    """
    with in_one_line(f"{folder / 'config.json'}: cannot be read"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_config(folder, config)
    tokenizer = open_tokenizer(folder)
    rows = check_sizes(folder, config)
    check_tokenizer(folder, tokenizer, rows)
    doubts = [*check_prompt(tokenizer, prompt, rows), *check_end(folder, tokenizer)]
    compute_one_token(folder, config, tokenizer.eos_token_id)
    return doubts


def inspect_encoder(folder: Path, settings: dict) -> str:
    """Open a vision encoder's files and encode a blank image.

    Args:
        folder: with configuration, processor and weights.
        settings: of the encoder.

    Returns:
        What it gives for an image, in words.

    Raises:
        TriptychError: it is not supported, a file is missing or damaged, or a setting does not fit.
    """
    encoder_kind(folder)
    if not (folder / PROCESSOR).is_file():
        raise TriptychError(f"{folder}: has no {PROCESSOR}; save the image processor into this folder, too")
    with in_one_line(f"{folder}: cannot be used as an encoder"), torch.inference_mode():
        encoder = vision.load_pretrained(folder, settings, CPU)
        pixels = encoder.preprocess([Image.new("RGB", (64, 48), vision.GREY)])
        tokens = encoder.tokens(pixels)
    _require_finite(folder, tokens)
    height, width = pixels.shape[-2:]
    return f"{tokens.shape[1]} tokens of {tokens.shape[2]} numbers for an image of {width} x {height} pixels"


def _require_finite(folder: Path, numbers: torch.Tensor) -> None:
    if not numbers.isfinite().all():
        raise TriptychError(f"{folder}: the weights give no finite numbers; fetch or save the model again")


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turn whatever libraries raise on damaged files into one line that begins with `what`."""
    try:
        yield
    except TriptychError:
        raise
    except Exception as error:
        said = message_of(error)
        said = f"{said[:200]}..." if len(said) > 200 else said
        raise TriptychError(f"{what} ({type(error).__name__}: {said}); fetch or save the model again") from None


def check_config(folder: Path, config: PreTrainedConfig) -> None:
    """Refuse a configuration of which nothing is computed, or something else than by transformers.

    Raises:
        TriptychError: the architecture is not supported, the weights are quantised, attention is not causal, or it sees
            no token.
    """
    path = folder / "config.json"
    try:
        architecture(config)
    except TriptychError as error:
        raise TriptychError(f"{path}: {error}") from None
    if getattr(config, "quantization_config", None):
        raise TriptychError(f"{path}: the weights are quantised, which is not supported; take the plain ones")
    if getattr(config, "use_bidirectional_attention", None) or not getattr(config, "is_causal", True):
        raise TriptychError(f"{path}: its attention is not causal: no language model that could answer")
    for what, tokens in (("context", context_tokens(config)), ("sliding window", sliding_window(config))):
        if tokens is not None and tokens < 1:
            raise TriptychError(f"{path}: a {what} of {tokens} tokens; fetch or save the model again")


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer.

    Raises:
        TriptychError: it is missing or damaged.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise TriptychError(f"{folder}: has no tokenizer; tokenizer.json must lie in this folder, beside config.json")
    with in_one_line(f"{folder}: the tokenizer cannot be opened"):
        return language_model.load_tokenizer(folder)


def check_sizes(folder: Path, config: PreTrainedConfig) -> int:
    """Compare the sizes in the configuration with those of the weights, before memory is taken for them.

    Returns:
        The number of rows of the embedding.

    Raises:
        TriptychError: a file of weights is damaged, or the files hold less than the configuration describes.
    """
    tensors = numbers = 0
    for path in sorted(folder.glob("*.safetensors")):
        with in_one_line(f"{path}: cannot be opened"), safe_open(path, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118, it is no dict
        tensors, numbers = tensors + len(shapes), numbers + sum(map(math.prod, shapes))
    path = folder / "config.json"
    if config.num_hidden_layers > tensors:
        raise TriptychError(f"{path}: {config.num_hidden_layers} layers, but the weights are {tensors} tensors")
    with in_one_line(f"{path}: no model has these sizes"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > numbers:
        raise TriptychError(
            f"{path}: describes a model of {described:,} numbers, but the weights hold {numbers:,}; fetch it again"
        )
    return model.get_input_embeddings().weight.shape[0]


def check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Check that a tokenizer ends answers, reads text, and knows no word that the model does not.

    Raises:
        TriptychError: it does not.
    """
    if tokenizer.eos_token_id is None or not 0 <= tokenizer.eos_token_id < rows:
        raise TriptychError(f"{folder}: the tokenizer has no end token that the model has; set its eos_token")
    added = tokenizer.added_tokens_decoder  # a token of its own that the model lacks is never given by data
    largest = max((number for number in tokenizer.get_vocab().values() if number not in added), default=-1)
    if largest >= rows:
        raise TriptychError(f"{folder}: the tokenizer has a token {largest}, but the model {rows} tokens: not its own")
    with in_one_line(f"{folder}: the tokenizer reads no text"):
        if not Reader.of(tokenizer).data("What is shown?"):
            raise TriptychError(f"{folder}: the tokenizer makes no tokens of text; fetch the model again")


def check_end(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Compare the token with which training ends answers, the tokenizer's, with what the model ends its turns with."""
    file, template = folder / "generation_config.json", str(tokenizer.chat_template or "")
    ends = read_json(file).get("eos_token_id") if file.is_file() else None
    known = tokenizer.convert_ids_to_tokens([ends] if isinstance(ends, int) else ends or [])
    turns = [token for token in known if token and token in template]
    if not turns or tokenizer.eos_token in template:
        return []
    return [
        f"models.language_model: answers end with {tokenizer.eos_token}, by its tokenizer, but its chat template ends "
        f"turns with {', '.join(turns)}: where a schedule trains nothing in it, it may not stop after an answer, and "
        "scores lower for that alone"
    ]


def check_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, rows: int) -> list[str]:
    """Compare a prompt with its tokenizer; gives what is doubtful about it, in words.

    Raises:
        TriptychError: the prompt holds the characters of an escape, or marks of another model.
    """
    key = "models.language_model.prompt"
    if escape := re.search(r"\\[nrt]", prompt):
        raise TriptychError(
            f"{key}: holds a backslash and the letter {escape.group()[1]}; in YAML, write it in double quotes, "
            "where they are a line end or a tab"
        )
    reader, template = Reader.of(tokenizer), tokenizer.chat_template and str(tokenizer.chat_template)
    unknown = [mark for mark in dict.fromkeys(MARKS.findall(prompt)) if len(reader.prompt(mark)) != 1]
    foreign = [mark for mark in unknown if mark not in (template or mark)]
    if foreign:
        known = ", ".join(mark for mark in dict.fromkeys(MARKS.findall(template)))
        raise TriptychError(
            f"{key}: this tokenizer does not know {', '.join(foreign)}, which it reads as text; its own chat template "
            f"has {known or 'no marks'}"
        )
    before, after = prompt.split("<image>")
    ids = reader.prompt(before) + reader.prompt(after)
    if ids and max(ids) >= rows:
        lacking = tokenizer.convert_ids_to_tokens(max(ids))
        raise TriptychError(f"{key}: the model has no embedding of {lacking}, though its tokenizer has it")
    doubts = []
    if not template:  # of a model's own template, marks that are text are right
        doubts = [f"{key}: {mark} is no token of this tokenizer, which reads it as text" for mark in unknown]
    first = tokenizer.bos_token_id
    if first is not None and tokenizer("x")["input_ids"][:1] == [first] and reader.prompt(before)[:1] != (first,):
        start = tokenizer.bos_token
        doubts.append(f"{key}: this tokenizer begins text with {start}; the prompt does not, and nothing adds it")
    return doubts


def compute_one_token(folder: Path, config: PreTrainedConfig, token: int) -> None:
    """Load the weights, and compute one token; where memory is short, only say so.

    Raises:
        TriptychError: the weights cannot be loaded, lack a tensor, or give no finite numbers.
    """
    needed, free = sum(path.stat().st_size for path in folder.glob("*.safetensors")), free_memory(CPU)
    if needed > ROOM * free:
        print(f"not computed: the weights take {needed / 1e9:.1f} GB, of {free / 1e9:.1f} GB free memory", flush=True)
        return
    with in_one_line(f"{folder}: the weights cannot be loaded"), torch.inference_mode():
        model = language_model.load(folder, config.dtype or torch.float32, "eager")
        logits = model(input_ids=torch.tensor([[token]]), use_cache=False).logits
    _require_finite(folder, logits)
