"""Where a model looks: what log-probability an answer loses when a square of the image is grey; and is it in a box?"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw

from triptych.data.boxed import Box
from triptych.evaluate.gold import gold_logprobs
from triptych.features.occluded import edges
from triptych.model.tokens import PromptTokens, Sample
from triptych.model.vlm import VisionLanguageModel

LOSES, GAINS = (214, 39, 40), (31, 119, 180)  # colours of squares without which an answer is less, or more, probable
STRONGEST = 0.65  # opacity of the square that matters most
SHOWN = 512  # pixels of the longer side of a picture, at least


def answer_drops(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    read: Callable[[Sequence[int]], torch.Tensor],
    views: int,
    prompt: PromptTokens,
    precision: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute what the answers to the questions about one image lose with each of its squares grey.

    Args:
        model: in evaluation mode, not made ready for answers.
        samples: S questions with the answers whose probability counts.
        read: from the numbers of V views (0: the image itself) to vision features (V, N, D), or to pixels.
        views: their number.
        prompt: fixed text.
        precision: of the forward pass.

    Returns:
        Log-probabilities (S,) with the image itself, and what they lose (S, views - 1), in nats; NaN for a question
        that does not fit into the model's context.
    """
    asked = [
        Sample(f"{view} {number}", str(view), sample.question, sample.answer)
        for view in range(views)
        for number, sample in enumerate(samples)
    ]
    found = gold_logprobs(model, asked, lambda names: read([int(name) for name in names]), prompt, precision)
    table = np.array(found, dtype=float).reshape(views, len(samples)).T
    return table[:, 0], table[:, :1] - table[:, 1:]


def shares_inside(boxes: Sequence[Box], width: int, height: int, grid: int) -> np.ndarray:
    """Compute the share of each square (grid², row by row) of an image that is within any of the boxes."""
    across, down = edges(width, grid), edges(height, grid)
    # Between neighbouring lines of squares and boxes, everything is either inside or outside.
    columns = _lines(across, [(left, left + wide) for left, _, wide, _ in boxes])
    rows = _lines(down, [(top, top + high) for _, top, _, high in boxes])
    x, y = (columns[1:] + columns[:-1]) / 2, (rows[1:] + rows[:-1]) / 2
    within = np.zeros((len(y), len(x)), bool)
    for left, top, wide, high in boxes:
        within |= np.outer((top < y) & (y < top + high), (left < x) & (x < left + wide))
    areas = np.outer(np.diff(rows), np.diff(columns)) * within
    inside = np.zeros((grid, grid))
    places = np.searchsorted(down, y, "right") - 1, np.searchsorted(across, x, "right") - 1
    np.add.at(inside, np.ix_(*places), areas)
    sizes = np.outer(np.diff(down), np.diff(across))
    return np.divide(inside, sizes, out=np.zeros_like(inside), where=sizes > 0).ravel()


def _lines(grid_lines: Sequence[int], spans: Sequence[tuple[float, float]]) -> np.ndarray:
    ends = [min(max(end, 0), grid_lines[-1]) for span in spans for end in span]
    return np.unique(np.array([*grid_lines, *ends], float))


def pointing_hits(boxes: Sequence[Box], width: int, height: int, grid: int) -> np.ndarray:
    """Tell of each square (grid², row by row) whether it points at a box.

    It does where its centre is in the box, or the centre of the box in it: small boxes can be hit, too.
    """
    squares = [
        (left, top, right - left, bottom - top)
        for top, bottom in pairwise(edges(height, grid))
        for left, right in pairwise(edges(width, grid))
    ]
    pairs = ((square, box) for square in squares for box in boxes)
    hits = [_holds_centre(box, square) or _holds_centre(square, box) for square, box in pairs]
    return np.array(hits).reshape(len(squares), len(boxes)).any(1)


def _holds_centre(outer: Box, inner: Box) -> bool:
    left, top, width, height = outer
    x, y = inner[0] + inner[2] / 2, inner[1] + inner[3] / 2
    return left <= x < left + width and top <= y < top + height


def picture(image: Image.Image, drops: Sequence[float], boxes: Sequence[Box] = ()) -> Image.Image:
    """Lay what an answer loses over an image: red squares matter to it, blue ones speak against it.

    Args:
        image: in RGB.
        drops: (grid²,) row by row.
        boxes: drawn as white frames.
    """
    scale = max(1, round(SHOWN / max(image.size)))
    shown = image.resize([side * scale for side in image.size], Image.Resampling.NEAREST)
    grid, most = round(len(drops) ** 0.5), max(map(abs, drops)) or 1.0
    strength = np.array(drops).reshape(grid, grid) / most
    down, across = (np.diff([scale * edge for edge in edges(side, grid)]) for side in image.size[::-1])
    alpha = np.repeat(np.repeat(np.abs(strength), down, 0), across, 1) * STRONGEST * 255
    loses = np.repeat(np.repeat(strength > 0, down, 0), across, 1)
    colours = np.where(loses[..., None], LOSES, GAINS)
    layer = np.concatenate([colours, alpha[..., None]], axis=2).round().astype(np.uint8)
    shown = Image.alpha_composite(shown.convert("RGBA"), Image.fromarray(layer, "RGBA")).convert("RGB")
    draw = ImageDraw.Draw(shown)
    for left, top, width, height in boxes:
        frame = [scale * end for end in (left, top, left + width, top + height)]
        draw.rectangle(frame, outline="white", width=2)
    return shown
