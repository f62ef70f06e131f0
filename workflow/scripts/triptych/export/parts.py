"""Layout `triptych`: language model, connector and encoder side by side, and the loader that joins them."""

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from triptych.config.base import Precision
from triptych.config.stages import Connector
from triptych.errors import TriptychError
from triptych.evaluate.generate import generate
from triptych.export.base_models import BaseModels, encoder_settings
from triptych.export.trained import MAX_NEW_TOKENS, greedy, plain_language_model
from triptych.io.manifest import read_json, sha256_file, write_json
from triptych.model import checkpoint, language_model, vision
from triptych.model.architectures import context_tokens
from triptych.model.connector import CONNECTOR_FILE, build_connector
from triptych.model.tokens import Sample, prompt_tokens, require_context
from triptych.model.vlm import VisionLanguageModel
from triptych.utils.device import attention_kind, best_device, compute_dtype, mixed_precision

WEIGHTS = (".safetensors", ".safetensors.index.json")  # files that hold weights, or list them
PACKAGED = "model.safetensors"
MARK = "triptych.json"  # marks a folder as an export; written last


def write_triptych(model: VisionLanguageModel, models: BaseModels, adapter: bool, folder: Path) -> None:
    """Write language model and tokenizer in transformers' format, and connector and encoder beside them."""
    save_file(dict(model.connector.state_dict()), folder / CONNECTOR_FILE)
    encoder = folder / "vision_encoder"
    files = read_json(models.vision_encoder / checkpoint.MANIFEST)["files"]
    for name in files:
        if model.vision is None or not name.endswith(WEIGHTS):
            (encoder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(models.vision_encoder / name, encoder / name)
    if model.vision:
        save_encoder(model.vision.network, encoder)
        files = {path.name: sha256_file(path) for path in sorted(encoder.iterdir())}
    settings = encoder_settings(models)
    if "folder" in settings:
        settings["folder"] = Path(settings["folder"]).name  # without the path on this machine
    write_json(encoder / checkpoint.MANIFEST, {"settings": settings, "files": files})
    text = plain_language_model(model, adapter, "", folder)
    tokenizer = language_model.load_tokenizer(models.language_model)
    text.generation_config = greedy(tokenizer.eos_token_id, tokenizer.pad_token_id)
    text.save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")


def save_encoder(network: nn.Module, folder: Path) -> None:
    """Write a vision encoder that was trained into a folder with the other files of its base, in fp32."""
    if isinstance(network, PreTrainedModel):
        network.save_pretrained(folder)
    else:
        folder.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / PACKAGED)


class Answerer:
    """Answers questions about images with an export of layout `triptych`."""

    def __init__(self, folder: Path, precision: Precision, device: torch.device):
        """Load and join the parts; see `load`."""
        facts = read_json(folder / MARK)
        self.precision, self.device = precision, device
        self.encoder = vision.load(folder / "vision_encoder", device)
        dtype = compute_dtype(precision, device)
        network = language_model.load(folder / "language_model", dtype, attention_kind(device))
        hidden = network.get_input_embeddings().weight.shape[1]
        if (folder / "adapter").is_dir():
            network = PeftModel.from_pretrained(network, folder / "adapter")
        connector = build_connector(Connector.model_validate(facts["connector"]), self.encoder.hidden_size, hidden, 0)
        connector.load_state_dict(load_file(folder / CONNECTOR_FILE), strict=True)
        self.model = VisionLanguageModel(connector, network).to(device).eval().requires_grad_(False)
        self.tokenizer = language_model.load_tokenizer(folder / "language_model")
        self.prompt = prompt_tokens(self.tokenizer, facts["prompt"])

    @torch.inference_mode()
    def __call__(self, image: Image.Image, question: str, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """Return the greedy answer to one question about one image."""
        pixels = self.encoder.preprocess([image.convert("RGB")])
        tokens = self.encoder.tokens(pixels.to(self.device)).float()
        sample = Sample("", "", self.prompt.encode_question(question), ())
        prefix_tokens = len(self.prompt.before_image) + self.model.image_tokens(tokens)
        require_context([sample], prefix_tokens, context_tokens(self.model.decoder.config), max_new_tokens)
        with mixed_precision(self.precision, self.device):
            [answer], _ = generate(self.model, [sample], lambda _: tokens, self.prompt, max_new_tokens)
        return self.tokenizer.decode(answer, skip_special_tokens=True).strip()


def load(folder: Path | str, precision: Precision = "fp32", device: torch.device | None = None) -> Answerer:
    """Load an export that transformers has no class for; call the result with an image and a question.

    Args:
        folder: a folder that `triptych export` wrote.
        precision: fp32, bf16, or auto for bf16 where the hardware has it.
        device: where to run; None for the GPU if there is one.

    Raises:
        TriptychError: it is not such an export, or a file is missing or changed.
    """
    folder = Path(folder)
    facts = read_json(folder / MARK)
    if facts["layout"] != "triptych":
        raise TriptychError(f"{folder}: load it with transformers, as its README.md says")
    for name, expected in facts["files"].items():
        if name.endswith((".safetensors", ".json")) and (
            not (folder / name).is_file() or sha256_file(folder / name) != expected
        ):
            raise TriptychError(f"{folder / name}: missing or changed since it was exported; export again")
    return Answerer(folder, precision, device or best_device())
