"""What probes read of an image: its tokens before and after projection, or the states of the language model there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from triptych.config.arms import PRE_PROJECTION
from triptych.config.evaluation import Layer, Probe
from triptych.config.grid import SHARED
from triptych.config.jobs import ProbeJob
from triptych.config.stages import Connector
from triptych.evaluate.generate import run_prefixes
from triptych.features.store import Features, Pixels
from triptych.io.manifest import read_json
from triptych.model import checkpoint
from triptych.model.checkpoint import Base, has_own_encoder, verify
from triptych.model.connector import CONNECTOR_FILE, build_connector
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import PromptTokens, prompt_tokens
from triptych.model.vlm import VisionLanguageModel
from triptych.utils.device import best_device
from triptych.utils.seeds import derive_seed

Pool = Callable[[torch.Tensor], torch.Tensor]

AT_ONCE = 64  # images projected at a time
AT_ONCE_BEHIND = 16  # images that the language model runs at a time


def average(tokens: torch.Tensor) -> torch.Tensor:
    """Average the tokens (B, T, D) of each image: (B, D)."""
    return tokens.mean(1)


class Sketch:
    """Reduces all tokens of an image to one width by random signs, once for each seed of the probes.

    Every place in the image has signs of its own, so what is where stays readable, which a mean loses. Distances
    between images are kept as well as their tokens', concatenated, would be by that many random directions
    (Achlioptas, "Database-friendly random projections", JCSS 2003), however many tokens a representation has.
    """

    def __init__(self, width: int, seeds: int):
        self.width, self.seeds = width, seeds

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reduce tokens (B, T, D): (B, seeds * width)."""
        _, places, size = tokens.shape
        reduced = []
        for seed in range(self.seeds):
            total = tokens.new_zeros(len(tokens), self.width)
            for place in range(places):
                total += tokens[:, place] @ self._signs(size, derive_seed(seed, "probe", "place", str(place)))
            reduced.append(total / self.width**0.5)
        return torch.cat(reduced, dim=1)

    def _signs(self, size: int, seed: int) -> torch.Tensor:
        bits = np.frombuffer(np.random.default_rng(seed).bytes(-(-size * self.width // 8)), np.uint8)
        signs = np.unpackbits(bits, count=size * self.width).astype(np.float32) * 2 - 1
        return torch.from_numpy(signs.reshape(size, self.width))


def random_subspace(width: int, kept: int, seed: int) -> np.ndarray:
    """Draw orthonormal directions (width, kept), onto which representations are projected to have one width."""
    drawn = np.random.default_rng(seed).normal(size=(width, kept))
    return np.linalg.qr(drawn)[0].astype(np.float32)


def probe_inputs(found: np.ndarray, settings: Probe, width: int) -> list[np.ndarray]:
    """Give the inputs (N, `width`) of the probes of each seed: other directions for each.

    Args:
        found: (N, D) means of tokens, D at least `width`, or (N, seeds * `width`), what `Sketch` makes.
        settings: number of seeds, and what `found` is.
        width: of the inputs.
    """
    if settings.tokens == "all":
        return np.split(found, settings.seeds, axis=1)
    seeds = [derive_seed(probe_seed, "probe") for probe_seed in range(settings.seeds)]
    return [found @ random_subspace(found.shape[1], width, seed) for seed in seeds]


def read(
    job: ProbeJob,
    checkpoints: Sequence[Path],
    base: Base,
    features: Features | Pixels,
    images: Sequence[str],
    width: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Read a representation of N images: of each split that it was trained on, as `probe_inputs` takes it.

    Args:
        job: names the representation.
        checkpoints: manifests; none for a representation that is not trained.
        base: vision features and language model.
        features: of the data set, or its pixels where checkpoints hold an encoder.
        images: image ids.
        width: of the probes' inputs.

    Raises:
        TriptychError: as `checkpoint.verify`.
    """
    pool = average if job.probe.tokens == "mean" else Sketch(width, job.probe.seeds)
    if not job.layer:
        for split, connector in connectors(job, checkpoints, base).items():
            yield split, image_tokens(features, images, connector, pool)
        return
    prompt = prompt_tokens(load_tokenizer(base.language_model), load_prompt(base.language_model))
    for split, model in models(job, checkpoints, base):
        off = model.has_lora and not job.lora
        with model.language_model.disable_adapter() if off else nullcontext():
            yield split, hidden_states(model, features, prompt, images, job.layer, pool)


@torch.inference_mode()
def image_tokens(
    features: Features | Pixels, images: Sequence[str], connector: torch.nn.Module | None, pool: Pool
) -> np.ndarray:
    """Pool the tokens of each of N images: after the connector or, where it is None, before projection."""
    parts = []
    for start in range(0, len(images), AT_ONCE):
        tokens = features(images[start : start + AT_ONCE]).float()  # or pixels, which `connector` begins with
        parts.append(pool(tokens if connector is None else connector(tokens)))
    return torch.cat(parts).numpy()


def connectors(job: ProbeJob, checkpoints: Sequence[Path], base: Base) -> dict[str, torch.nn.Module | None]:
    """Load the connector of each split: of its checkpoint, or a random one, or None before projection.

    Where a checkpoint holds a vision encoder, that is put before its connector.

    Args:
        job: names the representation.
        checkpoints: manifests; none for a representation that is not trained.
        base: vision features and language model.

    Raises:
        TriptychError: as `checkpoint.verify`.
    """
    if job.representation == PRE_PROJECTION:
        return {SHARED: None}
    sizes = base.hidden_size, text_width(base)
    if not checkpoints:
        return {SHARED: build_connector(job.connector, *sizes, derive_seed(job.seed, "connector", SHARED))}
    found = {}
    for path in checkpoints:
        manifest = verify(path, base)
        connector = build_connector(Connector.model_validate(manifest["connector"]), *sizes, 0)
        connector.load_state_dict(load_file(path.parent / CONNECTOR_FILE), strict=True)
        if has_own_encoder(manifest):
            tower = base.tower(manifest)
            for file in tower.states():
                tower.load(file, load_file(path.parent / file))
            connector = torch.nn.Sequential(tower, connector)
        found[manifest["split"]] = connector
    return found


def text_width(base: Base) -> int:
    """Give the size of the language model's hidden states, which connectors project to."""
    return AutoConfig.from_pretrained(base.language_model, trust_remote_code=False).get_text_config().hidden_size


def models(job: ProbeJob, checkpoints: Sequence[Path], base: Base) -> Iterator[tuple[str, VisionLanguageModel]]:
    """Load the model of each split in fp32: of its checkpoint, or behind a random connector; see `connectors`."""
    device = best_device()
    for path in checkpoints:
        yield read_json(path)["split"], checkpoint.load(base, path, torch.float32, device)
    if not checkpoints:
        fresh = checkpoint.build(base, None, job.connector, None, job.seed, SHARED, torch.float32, device, "random")
        yield SHARED, fresh.eval()


def hidden_states(
    model: VisionLanguageModel,
    features: Features | Pixels,
    prompt: PromptTokens,
    images: Sequence[str],
    layer: Layer,
    pool: Pool,
) -> np.ndarray:
    """Pool the language model's hidden states at the image tokens of each of N images.

    What follows an image changes nothing there, so no question is asked: the prompt up to the image is.

    Args:
        model: the model.
        features: of the data set.
        prompt: what stands before the image.
        images: N image ids.
        layer: `middle`, after half of the layers, or `last`, after all and the final norm.
        pool: of states (B, T, H).
    """
    decoder, found = model.decoder, []
    module = decoder if layer == "last" else decoder.layers[len(decoder.layers) // 2 - 1]

    def keep(module: torch.nn.Module, inputs: object, output: object) -> None:
        states = output.last_hidden_state if layer == "last" else output
        states = states[0] if isinstance(states, tuple) else states
        found.append(pool(states[:, len(prompt.before_image) :].float().cpu()))

    handle = module.register_forward_hook(keep)
    try:
        for start in range(0, len(images), AT_ONCE_BEHIND):
            run_prefixes(model, features, prompt, images[start : start + AT_ONCE_BEHIND], fixed_shapes=False)
    finally:
        handle.remove()
    return torch.cat(found).numpy()
