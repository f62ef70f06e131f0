"""What the benchmarks of training and of prediction share: models, questions, images, and processes of their own.

The vision towers have the shapes of CLIP-ViT-B/32 (50 tokens), SigLIP-B/16-224 (196) and SigLIP-B/16-384 (576), and
random weights, on which speed does not depend. Images are bytes of the tower's size: no decoding, no resizing. The
language model is that of config/slake-cpu.yaml or, for GPUs, one of the shape of config/config.yaml's with random
weights. Questions are those of SLAKE's training part where TRIPTYCH_SLAKE names a copy, otherwise random words in
SLAKE's numbers and lengths.
"""

import json
import multiprocessing
import os
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from slake_lengths import RANDOM_WORDS, slake_like
from torch import nn
from triptych.config.models import FolderLanguageModel
from triptych.config.settings import Settings
from triptych.config.stages import Connector
from triptych.config.study import load_study
from triptych.config.texts import cache_folder
from triptych.model.connector import build_connector
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.prepare import prepare_model
from triptych.model.tokens import PromptTokens, Sample, prompt_tokens, tokenise
from triptych.utils.device import best_device, compute_dtype, mixed_precision
from triptych.utils.seeds import derive_seed

CONFIGS = Path(__file__).parent.parent / "config"
# Tokens of an image -> architecture, side of the image and of a patch in pixels.
TOWERS = {50: ("clip", 224, 32), 196: ("siglip", 224, 16), 576: ("siglip", 384, 16)}
# The layers of all these towers.
VIT_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# TinyLlama-1.1B, the language model of config/config.yaml.
TINYLLAMA = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
TINYLLAMA |= {"num_key_value_heads": 4, "vocab_size": 32_000}
# Language model -> the study whose stages and LoRA are measured, and tokens of an image.
LANGUAGE_MODELS = {"smollm2": ("slake-cpu.yaml", (50, 196)), "tinyllama": ("config.yaml", (576,))}
IMAGES = 32  # different ones; SLAKE's images show them in turn
WIDTH = VIT_BASE["hidden_size"]  # of vision features
IMAGE_TOKEN = 3  # <repo_name>, which stands in no question: where transformers' rows hold the image
SEED = 0
SPLIT = "shared"


def settings_of(language_model: str) -> Settings:
    """The settings of the study that a language model belongs to."""
    file = CONFIGS / LANGUAGE_MODELS[language_model][0]
    return load_study(yaml.safe_load(file.read_text(encoding="utf-8"))).settings


def image_tokens_of(language_model: str) -> tuple[int, ...]:
    """Tokens of an image that a language model is measured with."""
    return LANGUAGE_MODELS[language_model][1]


def prepare(folder: Path, threads: int, language_model: str) -> tuple[PromptTokens, list[Sample], str]:
    """Write all models into `folder`; gives the prompt, the questions and, in words, where they come from.

    Sets the environment of the processes that measure: `threads` threads, no hub.
    """
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "KINETO_LOG_LEVEL": "5"}
    # Measuring processes are forks, which cannot use a GPU if the process before them asked the driver for it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    settings = settings_of(language_model).models.language_model
    if language_model == "tinyllama":
        apart(write_tinyllama, folder / "tinyllama")
        settings = FolderLanguageModel(source="folder", folder=str(folder / "tinyllama"), prompt=settings.prompt)
    prepare_model("language_model", settings, cache_folder(), folder / "language_model")
    for tokens in image_tokens_of(language_model):
        apart(write_llava, folder, tokens, settings_of(language_model).connector)
    prompt = load_prompt_tokens(folder)
    samples, origin = slake_samples(prompt)
    print(f"questions: {origin}: {len(samples)} of {len({sample.image_id for sample in samples})} images", flush=True)
    return prompt, samples, origin


def write_tinyllama(folder: Path) -> None:
    """Write a language model of TinyLlama's shape with random weights, and a tokenizer that knows no words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(SEED)
    with torch.device(best_device()):
        LlamaForCausalLM(LlamaConfig(**TINYLLAMA)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def slake_samples(prompt: PromptTokens) -> tuple[list[Sample], str]:
    """The questions, and in words where they come from."""
    if folder := os.environ.get("TRIPTYCH_SLAKE"):
        records = json.loads(Path(folder, "train.json").read_text(encoding="utf-8"))
        rows = [
            {"question_id": str(row["qid"]), "image_id": str(row["img_id"]), **row}
            for row in records
            if row["q_lang"] == "en"
        ]
        return tokenise(rows, prompt), "SLAKE's own (English training part)"
    return slake_like(prompt.encode_question(""), prompt.end), RANDOM_WORDS


def load_prompt_tokens(folder: Path) -> PromptTokens:
    """The fixed text of the language model in `folder`."""
    return prompt_tokens(load_tokenizer(folder / "language_model"), load_prompt(folder / "language_model"))


def random_images(image_tokens: int) -> torch.Tensor:
    """Random images (IMAGES, 3, side, side), bytes."""
    side = TOWERS[image_tokens][1]
    size = (IMAGES, 3, side, side)
    return torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes -> floats from -1 to 1."""
    return pixels.float() / 127.5 - 1


def image_numbers(image_ids: Sequence[str]) -> list[int]:
    """Number of the random image that stands for each image of SLAKE."""
    return [int(image_id) % IMAGES for image_id in image_ids]


def write_llava(folder: Path, image_tokens: int, connector: Connector) -> None:
    """Write the LLaVA model that Trainer trains, and the features of all images as its tower computes them."""
    from transformers import AutoModelForCausalLM, CLIPVisionConfig, LlavaConfig, SiglipVisionConfig
    from transformers import LlavaForConditionalGeneration as Llava

    torch.manual_seed(SEED)
    device = best_device()
    dtype = compute_dtype("auto", device)
    text = AutoModelForCausalLM.from_pretrained(folder / "language_model", dtype=dtype, trust_remote_code=False)
    architecture, side, patch_side = TOWERS[image_tokens]
    kind = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[architecture]
    config = LlavaConfig(
        vision_config=kind(**VIT_BASE, image_size=side, patch_size=patch_side),
        text_config=text.config,
        image_token_id=IMAGE_TOKEN,
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
        tie_word_embeddings=text.config.tie_word_embeddings,
    )
    with torch.device(device):
        model = Llava(config).to(dtype).eval()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    # As a fresh connector of Triptych's would be.
    link = build_connector(connector, WIDTH, text.config.hidden_size, derive_seed(SEED, "connector", SPLIT))
    model.model.multi_modal_projector.load_state_dict(link.state_dict())
    model.save_pretrained(folder / f"llava-{image_tokens}")
    save_file(dict(link.state_dict()), folder / f"fresh-{image_tokens}.safetensors")
    with torch.inference_mode(), mixed_precision("auto", device):
        shown = normalised(random_images(image_tokens)).to(device)
        states = model.model.vision_tower(shown, output_hidden_states=True).hidden_states
    tokens = states[config.vision_feature_layer].to(dtype).cpu().contiguous()
    save_file({"tokens": tokens}, folder / f"features-{image_tokens}.safetensors")


def load_llava(folder: Path, image_tokens: int) -> nn.Module:
    """transformers' LLaVA model, frozen, its projector as a fresh connector of Triptych's would be, in fp32."""
    from transformers import LlavaForConditionalGeneration as Llava

    dtype = compute_dtype("auto", best_device())
    model = Llava.from_pretrained(
        folder / f"llava-{image_tokens}", dtype=dtype, trust_remote_code=False
    ).requires_grad_(False)
    model.model.multi_modal_projector.float().load_state_dict(load_file(folder / f"fresh-{image_tokens}.safetensors"))
    return model.to(best_device())


class CachedTower(nn.Module):
    """Stands where the vision tower does, and passes on features that were computed before."""

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        """Features (B, N, D) as the tower's hidden states."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pixel_values, None, (pixel_values, pixel_values))


def stored_features(folder: Path, image_tokens: int) -> Callable[[Sequence[str]], torch.Tensor]:
    """The function that reads features (R, N, D) of image ids from the mapped file."""
    stored = safe_open(folder / f"features-{image_tokens}.safetensors", framework="pt").get_slice("tokens")
    return lambda image_ids: torch.stack([stored[row : row + 1][0] for row in image_numbers(image_ids)]).float()


def peak_memory() -> float:
    """Largest size so far in MB: of the tensors on the GPU, or of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def apart(function: Callable, *arguments: Any) -> Any:
    """Call a function in a new process, which has Triptych imported already and nothing more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["triptych.train.trainer", "transformers.models.llama.modeling_llama"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
