"""The order of training samples, which depends on seed, split, stage and epoch alone: any step can be recomputed."""

from collections.abc import Sequence

import numpy as np

from triptych.model.tokens import Sample, by_image
from triptych.utils.seeds import derive_seed


def epoch_batches(
    samples: Sequence[Sample], size: int, seed: int, key: Sequence[str], per_image: int | None = None
) -> list[list[Sample]]:
    """Shuffle samples into batches of exactly `size`; the last may be smaller.

    Images come in a random order, and an image's questions, in a random order, follow each other, so that they share
    its tokens; a batch is cut by samples, so its size does not depend on how many questions an image has.

    Args:
        samples: of the training part.
        size: samples in a batch.
        seed: of the run.
        key: what else the order depends on: split, stage and epoch.
        per_image: how many questions of an image follow each other, before another image comes; None: all of them.
    """
    generator = np.random.default_rng(derive_seed(seed, "order", *key))
    members = by_image(samples)
    images = sorted(members)
    groups: list[list[Sample]] = []
    for position in generator.permutation(len(images)):
        group = sorted((samples[index] for index in members[images[position]]), key=lambda one: one.question_id)
        group = [group[index] for index in generator.permutation(len(group))]
        length = per_image or len(group)
        groups += [group[start : start + length] for start in range(0, len(group), length)]
    if per_image is not None:
        groups = [groups[index] for index in generator.permutation(len(groups))]
    ordered = [sample for group in groups for sample in group]
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def partition_for_ranks(samples: Sequence[Sample], prefix_tokens: int, processes: int) -> list[list[Sample]]:
    """Divide a step's samples among processes: whole images, about as many tokens for each process.

    Greedy: the images with most tokens first, each to the process with fewest tokens so far. The order of samples is
    kept within a process; with fewer images than processes, some get none.

    Args:
        samples: those of one optimiser step.
        prefix_tokens: length of an image's shared prefix.
        processes: number of processes.
    """
    images = list(by_image(samples).values())
    tokens = [prefix_tokens + sum(len(samples[index].text) for index in indices) for indices in images]
    loads = [0] * processes
    owner = [0] * len(images)
    for image in sorted(range(len(images)), key=lambda image: -tokens[image]):
        owner[image] = loads.index(min(loads))
        loads[owner[image]] += tokens[image]
    return [
        [samples[index] for image, indices in enumerate(images) if owner[image] == process for index in indices]
        for process in range(processes)
    ]
