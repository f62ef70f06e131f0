"""The order of training samples: it depends on seed, split, stage and epoch alone, so it can be taken up anywhere."""

from collections.abc import Sequence

import numpy as np

from triptych.model.tokens import Sample, by_image
from triptych.utils.seeds import derive_seed


def epoch_batches(samples: Sequence[Sample], size: int, seed: int, key: Sequence[str]) -> list[list[Sample]]:
    """Batches of exactly `size` samples (the last may be smaller).

    Images come in a random order, and an image's questions, in a random order, follow each other, so that they share
    its tokens; a batch is cut by samples, so its size does not depend on how many questions an image has.
    """
    generator = np.random.default_rng(derive_seed(seed, "order", *key))
    members = by_image(samples)
    images = sorted(members)
    ordered: list[Sample] = []
    for position in generator.permutation(len(images)):
        group = [samples[index] for index in members[images[position]]]
        group.sort(key=lambda sample: sample.question_id)
        ordered += [group[index] for index in generator.permutation(len(group))]
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def shares(samples: Sequence[Sample], prefix: int, processes: int) -> list[list[Sample]]:
    """A step's samples cut into a share for each process: whole images, about as many tokens in each, some maybe empty.

    The image with the most tokens comes first, and each goes where there are fewest; within a share, order is kept.

    Args:
        samples: those of one optimiser step.
        prefix: tokens of an image prefix.
        processes: how many shares.
    """
    images = list(by_image(samples).values())
    tokens = [prefix + sum(len(samples[index].text) for index in indices) for indices in images]
    loads = [0] * processes
    owner = [0] * len(images)
    for image in sorted(range(len(images)), key=lambda image: -tokens[image]):
        owner[image] = loads.index(min(loads))
        loads[owner[image]] += tokens[image]
    return [
        [samples[index] for image, indices in enumerate(images) if owner[image] == share for index in indices]
        for share in range(processes)
    ]
