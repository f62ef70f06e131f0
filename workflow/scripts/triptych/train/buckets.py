"""Few fixed shapes for the batches of a training: layers are compiled, and a GPU's kernels chosen, once for each."""

from collections.abc import Sequence

from triptych.model.packing import Shape, split_by_image
from triptych.model.tiles import TILE
from triptych.model.tokens import Sample, by_image

MOST_SHAPES = 6  # each costs a compilation; on SLAKE's lengths six waste about 4 % of the tokens


def size_of(samples: Sequence[Sample], prefix_tokens: int) -> Shape:
    """Measure what a batch of samples needs: the tokens of one row, images and answer tokens."""
    images = len(by_image(samples))
    answers = sum(len(sample.answer) for sample in samples)
    return Shape(prefix_tokens * images + sum(len(sample.text) for sample in samples), images, answers)


def plan_shapes(
    epochs: Sequence[Sequence[Sequence[Sample]]], validation: Sequence[Sample], prefix_tokens: int
) -> tuple[list[Shape], list[list[Sample]]]:
    """Choose the shapes of a training, and divide its validation's samples into batches of the last one.

    Args:
        epochs: the samples of each pass of each epoch.
        validation: the samples of the validation.
        prefix_tokens: length of an image's shared prefix.
    """
    sizes = [[size_of(samples, prefix_tokens) for samples in epoch] for epoch in epochs]
    longest = max(size.tokens for epoch in sizes for size in epoch)
    batches = split_by_image(validation, prefix_tokens, longest)
    return choose_shapes(sizes, [size_of(batch, prefix_tokens) for batch in batches]), batches


def choose_shapes(epochs: Sequence[Sequence[Shape]], validation: Sequence[Shape]) -> list[Shape]:
    """Choose shapes that all batches fit in and that waste few tokens, in ascending order.

    Every shape is needed in the first epoch, so that nothing is compiled later, and the batches of the validation, in
    which layers are compiled again, all take the last one.

    Args:
        epochs: the sizes of each epoch's batches.
        validation: the sizes of the validation's batches.
    """
    sizes = [size for epoch in epochs for size in epoch]
    ends = _ends([_tiles(size) for size in sizes])
    seen = [_tiles(size) for size in epochs[0]]
    # A length that the first epoch does not need is merged with the next one; the last one with the one before it.
    ends = [
        end
        for place, end in enumerate(ends)
        if end == ends[-1] or any((ends[place - 1] if place else 0) < tiles <= end for tiles in seen)
    ]
    while len(ends) > 1 and max(seen) <= ends[-2]:
        del ends[-2]
    ends[-1] = max([ends[-1], *map(_tiles, validation)])
    shapes = []
    for before, end in zip([0, *ends], ends, strict=False):
        inside = [size for size in sizes if before < _tiles(size) <= end]
        if end == ends[-1]:
            inside += validation
        shapes.append(Shape(end * TILE, max(size.images for size in inside), max(size.answers for size in inside)))
    # A longer shape has at least the slots of a shorter one, so that the first that is long enough fits.
    for shorter, place in zip(shapes, range(1, len(shapes)), strict=False):
        longer = shapes[place]
        slots = max(shorter.images, longer.images), max(shorter.answers, longer.answers)
        shapes[place] = Shape(longer.tokens, *slots)
    return shapes


def _tiles(size: Shape) -> int:
    return -(-size.tokens // TILE)


def _ends(lengths: Sequence[int]) -> list[int]:
    """Choose at most MOST_SHAPES lengths, such that rounding each of `lengths` up to one of them adds least."""
    values = sorted(set(lengths))
    below = [0]  # number of lengths up to each value
    for value in values:
        below.append(below[-1] + lengths.count(value))
    # least[n]: the least sum for the first n values, and its last lengths, with as many lengths as rounds so far.
    least = [(0, [])] + [(float("inf"), [])] * len(values)
    for _ in range(MOST_SHAPES):
        longer = list(least)
        for stop in range(1, len(values) + 1):
            for start in range(stop):
                cost, ends = least[start]
                cost += values[stop - 1] * (below[stop] - below[start])
                if cost < longer[stop][0]:
                    longer[stop] = cost, [*ends, values[stop - 1]]
        least = longer
    return least[-1][1]
