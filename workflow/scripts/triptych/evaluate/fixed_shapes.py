"""Answers at fixed shapes, for GPUs: no step waits for a number of the one before, and layers are compiled once.

Keys and values of a batch lie in room that is made once, for the image's prefix, the question and the answer. The
number of rows is a power of two, that of a question's tokens a multiple of QUESTION_TOKENS, and images are run
NEIGHBOURS at a time; what is added to reach these numbers is hidden or dropped. All tokens of an answer are computed at
one shape.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

from triptych.evaluate.constrained import AnswerTree
from triptych.model.architectures import head_size
from triptych.model.attention import layer_masks
from triptych.model.tokens import PromptTokens, Sample
from triptych.model.vlm import VisionLanguageModel

ATTENTION = "triptych_fixed_shapes"
NEIGHBOURS = 8  # images that are run together
QUESTION_TOKENS = 32  # a question of SLAKE's has up to 31 with its prompt
READ_EVERY = 8  # tokens after which it is asked whether all answers have ended: the host waits for the device there
ALIGNED = 8  # keys: fused kernels of attention copy a mask whose rows are not aligned

Masks = torch.Tensor | dict[str, torch.Tensor]  # one for all layers, or one for each type
Room = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values (R, K, L, D) of each layer


def at_fixed_shapes(wanted: bool | None, device: torch.device) -> bool:
    """Choose how answers are computed; where it is not `wanted` otherwise, at fixed shapes on a GPU.

    A CPU is busy with every row and token: it computes none that is only added, and none that is answered.
    """
    return device.type == "cuda" if wanted is None else wanted


def generate_at_fixed_shapes(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    prefixes: DynamicCache,
    rows: Sequence[int],
    prompt: PromptTokens,
    max_new_tokens: int,
    tree: AnswerTree | None = None,
) -> tuple[list[list[int]], list[float]]:
    """Answer as `generate` does.

    Args:
        model: that answers.
        samples: the questions.
        prefixes: keys and values of the images.
        rows: for each question, the row of its image in `prefixes`.
        prompt: fixed text.
        max_new_tokens: longest answer.
        tree: of the answers that may be given; None: any.
    """
    device = next(model.parameters()).device
    before, asked = prefixes.get_seq_length(), _up(max(len(sample.question) for sample in samples), QUESTION_TOKENS)
    added = (1 << (len(samples) - 1).bit_length()) - len(samples)
    samples, rows = [*samples, *[samples[-1]] * added], [*rows, *[rows[-1]] * added]
    pads = [asked - len(sample.question) for sample in samples]
    tokens = [[prompt.end] * pad + list(sample.question) for pad, sample in zip(pads, samples, strict=True)]
    room = _room(model, len(samples), _up(before + asked + max_new_tokens, ALIGNED))
    chosen = torch.tensor(rows, device=device)
    for (keys, values), layer in zip(room, prefixes.layers, strict=True) if before else ():
        keys[:, :, :before] = layer.keys[chosen]
        values[:, :, :before] = layer.values[chosen]
    positions, masks = _shown(model, torch.tensor(pads, device=device), before, asked, max_new_tokens, room)
    place = torch.arange(before, before + asked, device=device)
    answers = torch.full((len(samples), max_new_tokens), prompt.end, device=device)
    logprobs = torch.zeros(len(samples), device=device)
    done = torch.arange(len(samples), device=device) >= len(samples) - added
    nodes = torch.zeros(len(samples), dtype=torch.long, device=device)  # of the tree
    inputs, seen = torch.tensor(tokens, device=device), slice(asked)
    with _kept(model, room):
        for number in range(max_new_tokens):
            hidden = model.decoder(
                input_ids=inputs,
                position_ids=positions[:, seen],
                attention_mask=_queries(masks, seen, model),
                use_cache=False,
                place=place,
            ).last_hidden_state
            logits = model.logits(hidden[:, -1]).float()
            following, nodes = tree.choose(logits, nodes) if tree else (logits.argmax(-1), nodes)
            gained = logits.gather(1, following[:, None])[:, 0] - logits.logsumexp(-1)
            logprobs += gained.masked_fill(done, 0)
            answers[:, number] = following
            done = done | (following == prompt.end)
            if number % READ_EVERY == READ_EVERY - 1 and bool(done.all()):
                break
            inputs, seen = following[:, None], slice(asked + number, asked + number + 1)
            place = place[-1:] + 1
    given = slice(len(samples) - added)
    return [_ended(answer, prompt.end) for answer in answers[given].tolist()], logprobs[given].tolist()


def run_prefixes_at_fixed_shapes(model: VisionLanguageModel, prefixes: torch.Tensor) -> DynamicCache:
    """Run prefixes of images (R, P, H), NEIGHBOURS at a time; gives their keys and values."""
    length = prefixes.shape[1]
    place = torch.arange(length, device=prefixes.device)
    parts = []
    for start in range(0, len(prefixes), NEIGHBOURS):
        inputs = prefixes[start : start + NEIGHBOURS]
        number = len(inputs)
        inputs = torch.cat([inputs, inputs[-1:].expand(NEIGHBOURS - number, -1, -1)])
        room = _room(model, NEIGHBOURS, _up(length, ALIGNED))
        positions, masks = _shown(model, place.new_zeros(1), 0, length, 0, room)
        with _kept(model, room):
            masks = _queries(masks, slice(length), model)
            model.decoder(
                inputs_embeds=inputs, position_ids=positions, attention_mask=masks, use_cache=False, place=place
            )
        parts.append([(keys[:number, :, :length], values[:number, :, :length]) for keys, values in room])
    return DynamicCache([[torch.cat(part) for part in zip(*layer, strict=True)] for layer in zip(*parts, strict=True)])


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _ended(answer: list[int], end: int) -> list[int]:
    return answer[: answer.index(end)] if end in answer else answer


def _room(model: VisionLanguageModel, rows: int, length: int) -> Room:
    """Make room for L keys and values of R rows; what is not written yet is finite."""
    config, weight = model.decoder.config, model.language_model.get_input_embeddings().weight
    shape = rows, config.num_key_value_heads, length, head_size(config)
    return [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in model.decoder.layers]


@contextmanager
def _kept(model: VisionLanguageModel, room: Room) -> Iterator[None]:
    """Have the layers write keys and values into `room`, each into its own, and attend to what is there."""
    config = model.decoder.config
    usual = config._attn_implementation
    config._attn_implementation = ATTENTION
    for layer, kept in zip(model.decoder.layers, room, strict=True):
        layer.self_attn.kept = kept
    try:
        yield
    finally:
        config._attn_implementation = usual
        for layer in model.decoder.layers:
            del layer.self_attn.kept


def _shown(
    model: VisionLanguageModel, pads: torch.Tensor, before: int, asked: int, new: int, room: Room
) -> tuple[torch.Tensor, Masks]:
    """Build positions (R, Q) and masks (R, 1, Q, L) of the Q tokens of question and answer.

    Args:
        model: whose layers they are for.
        pads: number of tokens (R,) that are hidden between prefix and question.
        before: tokens of the prefix.
        asked: tokens of the question, with those that are hidden.
        new: tokens of the longest answer.
        room: for keys and values.
    """
    keys = torch.arange(room[0][0].shape[2], device=pads.device)[None]
    hidden = (keys >= before) & (keys < before + pads[:, None])
    positions = keys - (keys - before).clamp(min=0).minimum(pads[:, None])
    queries = slice(before, before + asked + new)
    allowed = ~hidden[:, None] & (keys[:, None] <= keys[0, queries, None])
    distance = positions[:, queries, None] - positions[:, None]
    masks = layer_masks(model.decoder.config, allowed[:, None], distance[:, None], room[0][0].dtype)
    return positions[:, queries], masks


def _queries(masks: Masks, chosen: slice, model: VisionLanguageModel) -> Masks:
    """Choose the masks of some queries, for all heads that share a key: (R, 1, G * Q, L)."""
    if isinstance(masks, dict):
        return {name: _queries(mask, chosen, model) for name, mask in masks.items()}
    config = model.decoder.config
    mask = masks[:, :, None, chosen].expand(-1, -1, config.num_attention_heads // config.num_key_value_heads, -1, -1)
    return mask.flatten(2, 3).contiguous()  # once for all layers


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    place: torch.Tensor,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Keep keys and values (R, K, Q, D) at `place` (Q,), then attend from queries (R, H, Q, D) to all that are kept.

    The queries of heads that share a key are stacked, so that no key is repeated. Gives (R, Q, H, D).
    """
    keys, values = module.kept
    keys.index_copy_(2, place, key.to(keys.dtype))
    values.index_copy_(2, place, value.to(values.dtype))
    stacked = query.to(keys.dtype).reshape(len(query), keys.shape[1], -1, query.shape[3])
    if softcap is None:
        found = nn.functional.scaled_dot_product_attention(stacked, keys, values, attention_mask, scale=scaling)
    else:
        weights = softcap * torch.tanh(stacked @ keys.transpose(2, 3) * (scaling / softcap)) + attention_mask
        found = weights.softmax(-1, dtype=torch.float32).to(values.dtype) @ values
    return found.reshape(query.shape).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)
