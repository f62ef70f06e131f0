"""Greedy answers of a model, the questions of one image together."""

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache

from triptych.model.attention import layer_masks
from triptych.model.tokens import PromptTokens, Sample
from triptych.model.vlm import VisionLanguageModel

ReadFeatures = Callable[[Sequence[str]], torch.Tensor]


@torch.inference_mode()
def generate(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    features: ReadFeatures,
    prompt: PromptTokens,
    max_new_tokens: int,
) -> tuple[list[list[int]], list[float]]:
    """Greedy answers (token ids, without the end token) and their log-probabilities, in the order of `samples`.

    The image prefix runs once per image; its keys and values are then shared by all the image's questions. Questions
    are padded on the left, between prefix and question, where the mask hides it. A blind model is shown no image, and
    no features are asked for. The log-probability (natural logarithm) is that of the answer's tokens and, where it is
    not cut off, of its end.
    """
    device = next(model.parameters()).device
    images = list(dict.fromkeys(sample.image_id for sample in samples))
    before = model.embed(torch.tensor(prompt.before_image, dtype=torch.long, device=device))
    prefix = before.expand(len(images), -1, -1)
    if not model.blind:
        prefix = torch.cat([prefix, model.project(features(images).to(device))], dim=1)
    cache = DynamicCache()  # of all tokens, also for layers with a window: which ones they see, the masks say
    if prefix.shape[1]:  # a blind model's prompt may begin with the question
        seen = torch.ones(prefix.shape[:2], dtype=torch.long, device=device)
        model.decoder(inputs_embeds=prefix, past_key_values=cache, use_cache=True, **_shown(model, seen, seen.shape[1]))
        cache.batch_select_indices(torch.tensor([images.index(sample.image_id) for sample in samples], device=device))

    longest = max(len(sample.question) for sample in samples)
    pads = [longest - len(sample.question) for sample in samples]
    tokens = [[prompt.end] * pad + list(sample.question) for pad, sample in zip(pads, samples, strict=True)]
    seen = torch.ones(len(samples), prefix.shape[1] + longest, dtype=torch.long, device=device)
    for row, pad in enumerate(pads):
        seen[row, prefix.shape[1] : prefix.shape[1] + pad] = 0
    inputs = torch.tensor(tokens, device=device)
    answers: list[list[int]] = [[] for _ in samples]
    logprobs = torch.zeros(len(samples), device=device)
    rows = torch.arange(len(samples), device=device)  # the samples that are still being answered
    for _ in range(max_new_tokens):
        shown = _shown(model, seen, inputs.shape[1])
        hidden = model.decoder(input_ids=inputs, past_key_values=cache, use_cache=True, **shown).last_hidden_state
        logits = model.logits(hidden[:, -1]).float()
        following = logits.argmax(-1)
        logprobs[rows] += logits.amax(-1) - logits.logsumexp(-1)
        running = (following != prompt.end).nonzero().flatten()
        if not len(running):
            break
        for row, token in zip(rows[running].tolist(), following[running].tolist(), strict=True):
            answers[row].append(token)
        inputs = following[:, None]
        if len(running) < len(rows):  # what is answered costs nothing from here on
            cache.batch_select_indices(running)
            rows, inputs, seen = rows[running], inputs[running], seen[running]
        seen = torch.cat([seen, torch.ones_like(inputs)], dim=1)
    return answers, logprobs.tolist()


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
