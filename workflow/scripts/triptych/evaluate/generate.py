"""Greedy answers of a model, the questions of one image together."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import DynamicCache

from triptych.evaluate.constrained import AnswerTree
from triptych.evaluate.fixed_shapes import (
    NEIGHBOURS,
    at_fixed_shapes,
    generate_at_fixed_shapes,
    run_prefixes_at_fixed_shapes,
)
from triptych.model.architectures import head_size
from triptych.model.attention import layer_masks
from triptych.model.tokens import PromptTokens, Sample
from triptych.model.vlm import VisionLanguageModel

ReadFeatures = Callable[[Sequence[str]], torch.Tensor]
RunPrefixes = Callable[[Sequence[str]], DynamicCache]

PREFIX_BYTES = 2 << 30  # of all prefixes that are kept: a fold of SLAKE with TinyLlama-1.1B in bf16 needs 1.7 GB


@torch.inference_mode()
def generate(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    features: ReadFeatures,
    prompt: PromptTokens,
    max_new_tokens: int,
    prefixes: RunPrefixes | None = None,
    fixed_shapes: bool | None = None,
    tree: AnswerTree | None = None,
) -> tuple[list[list[int]], list[float]]:
    """Greedy answers (token ids, without the end token) and their log-probabilities, in the order of `samples`.

    The image prefix runs once per image; its keys and values are then shared by all the image's questions. Questions
    are padded on the left, between prefix and question, where the mask hides it. A blind model is shown no image, and
    no features are asked for. The log-probability (natural logarithm) is that of the answer's tokens and, where it is
    not cut off, of its end. `prefixes`, where given, is called for the prefixes of images instead of running them here,
    as `SharedPrefixes` does. `fixed_shapes` chooses how it is computed; None: as suits the device. With a `tree`, all
    answers are out of it.
    """
    device = next(model.parameters()).device
    images = list(dict.fromkeys(sample.image_id for sample in samples))
    cache = (prefixes or partial(run_prefixes, model, features, prompt, fixed_shapes=fixed_shapes))(images)
    places = [images.index(sample.image_id) for sample in samples]
    if at_fixed_shapes(fixed_shapes, device):
        return generate_at_fixed_shapes(model, samples, cache, places, prompt, max_new_tokens, tree)
    before = cache.get_seq_length()
    if before:  # a blind model's prompt may begin with the question
        cache.batch_select_indices(torch.tensor(places, device=device))

    longest = max(len(sample.question) for sample in samples)
    pads = [longest - len(sample.question) for sample in samples]
    tokens = [[prompt.end] * pad + list(sample.question) for pad, sample in zip(pads, samples, strict=True)]
    seen = torch.ones(len(samples), before + longest, dtype=torch.long, device=device)
    for row, pad in enumerate(pads):
        seen[row, before : before + pad] = 0
    inputs = torch.tensor(tokens, device=device)
    answers: list[list[int]] = [[] for _ in samples]
    logprobs = torch.zeros(len(samples), device=device)
    rows = torch.arange(len(samples), device=device)  # the samples that are still being answered
    nodes = torch.zeros_like(rows)  # of the tree
    for _ in range(max_new_tokens):
        shown = _shown(model, seen, inputs.shape[1])
        hidden = model.decoder(input_ids=inputs, past_key_values=cache, use_cache=True, **shown).last_hidden_state
        logits = model.logits(hidden[:, -1]).float()
        following, nodes = tree.choose(logits, nodes) if tree else (logits.argmax(-1), nodes)
        logprobs[rows] += logits.gather(1, following[:, None])[:, 0] - logits.logsumexp(-1)
        running = (following != prompt.end).nonzero().flatten()
        if not len(running):
            break
        for row, token in zip(rows[running].tolist(), following[running].tolist(), strict=True):
            answers[row].append(token)
        inputs = following[:, None]
        if len(running) < len(rows):  # what is answered costs nothing from here on
            cache.batch_select_indices(running)
            rows, nodes, inputs, seen = rows[running], nodes[running], inputs[running], seen[running]
        seen = torch.cat([seen, torch.ones_like(inputs)], dim=1)
    return answers, logprobs.tolist()


@torch.inference_mode()
def run_prefixes(
    model: VisionLanguageModel,
    features: ReadFeatures,
    prompt: PromptTokens,
    images: Sequence[str],
    fixed_shapes: bool | None = None,
) -> DynamicCache:
    """Run the prompt up to and with the image for R images; give their keys and values, of all tokens.

    Layers with a window have all tokens, too: which ones they see, the masks say.
    """
    device = next(model.parameters()).device
    before = model.embed(torch.tensor(prompt.before_image, dtype=torch.long, device=device))
    prefix = before.expand(len(images), -1, -1)
    if not model.blind:
        prefix = torch.cat([prefix, model.project(features(images).to(device))], dim=1)
    cache = DynamicCache()
    if prefix.shape[1] and at_fixed_shapes(fixed_shapes, device):
        return run_prefixes_at_fixed_shapes(model, prefix)
    if prefix.shape[1]:
        seen = torch.ones(prefix.shape[:2], dtype=torch.long, device=device)
        model.decoder(inputs_embeds=prefix, past_key_values=cache, use_cache=True, **_shown(model, seen, seen.shape[1]))
    return cache


def prefixes_fit(model: VisionLanguageModel, tokens: int, images: int) -> bool:
    """Tell whether the keys and values of so many images, each of a prefix of `tokens`, fit into PREFIX_BYTES."""
    config = model.decoder.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size(config) * tokens * images
    return numbers * model.language_model.get_input_embeddings().weight.itemsize <= PREFIX_BYTES


class SharedPrefixes:
    """Prefixes of images, each run once for all batches and views that show it.

    An image is always run with the same neighbours: so its last bits depend neither on the view, nor on where a killed
    job goes on.
    """

    def __init__(self, run: RunPrefixes, images: Sequence[str]):
        """Share the prefixes of `images` (all that are shown), which `run` runs."""
        self._run = run
        self._images = list(images)
        self._place = {image: number for number, image in enumerate(images)}
        self._kept: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def __call__(self, images: Sequence[str]) -> DynamicCache:
        """Give keys and values of R images."""
        for image in images:
            if image not in self._kept:
                start = self._place[image] // NEIGHBOURS * NEIGHBOURS
                self._keep(self._images[start : start + NEIGHBOURS])
        layers = zip(*(self._kept[image] for image in images), strict=True)
        return DynamicCache([[torch.cat(parts) for parts in zip(*layer, strict=True)] for layer in layers])

    def _keep(self, images: Sequence[str]) -> None:
        layers = [(layer.keys, layer.values) for layer in self._run(images).layers]
        for row, image in enumerate(images):
            self._kept[image] = [(keys[row : row + 1], values[row : row + 1]) for keys, values in layers]


def _shown(model: VisionLanguageModel, seen: torch.Tensor, queries: int) -> dict:
    """Build positions and masks of the last `queries` tokens of rows of which `seen` (R, K) is 0 at padding.

    Distances are counted in positions, without padding, so that windows are those of a question alone.
    """
    positions = seen.cumsum(1) - 1
    keys = torch.arange(seen.shape[1], device=seen.device)
    allowed = seen.bool()[:, None, :] & (keys[None, :] <= keys[-queries:, None])
    distance = positions[:, -queries:, None] - positions[:, None, :]
    dtype = model.language_model.get_input_embeddings().weight.dtype
    masks = layer_masks(model.decoder.config, allowed[:, None], distance[:, None], dtype)
    return {"position_ids": positions[:, -queries:], "attention_mask": masks}
