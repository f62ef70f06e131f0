"""Build a tokenizer that reads a whole prompt with <image> as Triptych reads the pieces around the image."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from triptych.errors import TriptychError
from triptych.model.tokens import prompt_tokens

IMAGE_TOKEN = "<image>"
# Texts on which the exported tokenizer is compared with the one that the checkpoint was trained with.
PROBES = (
    "",
    " ",
    "Is it red?",
    "what colour is the square ?",
    " two\nlines ",
    "Größe: 12,5 µm — où?",
    "<b>x</b> \t 图",
)


def image_tokenizer(tokenizer: PreTrainedTokenizerBase, prompt: str, count: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer with <image> added, whose ids of a whole prompt are those of its pieces in Triptych.

    No id of the given tokenizer changes, and no token is added at the start or the end.

    Args:
        tokenizer: the language model's.
        prompt: text of one turn.
        count: image tokens of an image.

    Raises:
        TriptychError: the ids differ.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TriptychError("the language model's tokenizer has no tokenizer.json form, which the export needs")
    as_is = json.loads(backend.to_str())
    for facts in (as_is, _start_everywhere(as_is)):
        found = _with_image_token(Tokenizer.from_str(json.dumps(facts)), tokenizer)
        if same_ids(tokenizer, found, prompt, count):
            return found
    raise TriptychError(
        "the language model's tokenizer gives a prompt with <image> other ids than its two parts; no tokenizer that "
        "transformers could use gives the ids that the model was trained on, so it cannot be exported"
    )


def _with_image_token(backend: Tokenizer, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    backend.no_padding()
    backend.no_truncation()
    found = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokenizer.special_tokens_map,
        add_bos_token=False,  # prompts are read without a start token, in training as well
        add_eos_token=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
    )
    if found.pad_token is None:
        found.pad_token = found.eos_token
    # Not normalised, and without the spaces beside it: the text on both sides is read as if it stood alone.
    found.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False, lstrip=False, rstrip=False)])
    return found


def _start_everywhere(facts: dict) -> dict:
    """Return the same tokenizer, with the mark for "start of text" also before text that follows <image>."""
    text = json.dumps(facts["pre_tokenizer"])
    return {
        **facts,
        "pre_tokenizer": json.loads(text.replace('"prepend_scheme": "first"', '"prepend_scheme": "always"')),
    }


def same_ids(
    ours: PreTrainedTokenizerBase,
    found: PreTrainedTokenizerBase,
    prompt: str,
    count: int,
    texts: Iterable[str] = PROBES,
) -> bool:
    """Tell whether `found` reads whole prompts as Triptych reads their pieces with `ours`."""
    pieces = prompt_tokens(ours, prompt)
    image = [found.convert_tokens_to_ids(IMAGE_TOKEN)] * count
    return all(
        found(prompt.replace(IMAGE_TOKEN, IMAGE_TOKEN * count).replace("{question}", text))["input_ids"]
        == [*pieces.before_image, *image, *pieces.encode_question(text)]
        for text in texts
    )


def chat_template(prompt: str) -> str:
    """Return the prompt as a chat template, for one user message with one image and one question."""
    before, after = (ascii(part) for part in prompt.split("{question}"))
    # The template's own spaces and line ends must not get into the prompt.
    return (
        "{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}"
        "{{- raise_exception('this model answers one question about one image') -}}{%- endif -%}"
        f"{{{{- {before} -}}}}"
        "{%- if messages[0]['content'] is string -%}{{- messages[0]['content'] -}}{%- else -%}"
        "{%- for part in messages[0]['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
        "{%- endif -%}"
        f"{{{{- {after} -}}}}"
    )
