"""The grid of trainings: which checkpoints a study needs, and from which parent each one starts.

A checkpoint is named by the stages behind it, its split and its seed. Its split is `shared` until the first stage
that runs per fold, then `fold0`, `fold1`, ... Schedules with equal first stages share those checkpoints.
"""

from dataclasses import dataclass

from triptych.settings import Settings

SHARED = "shared"
# What is probed beside checkpoints: vision features as they are, and behind a connector that nothing has trained.
PRE_PROJECTION = "pre-projection"
RANDOM_CONNECTOR = "random-connector"
# Baselines that answer on the folds of every kind of the leak study, because they cost nothing.
LOOKUPS = ("majority-per-question", "nearest-pictures")


@dataclass(frozen=True)
class Checkpoint:
    """One cell of the grid."""

    prefix: str
    split: str
    seed: int


def prefixes(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Every prefix of every schedule by name, shortest first: {'1': ('1',), '1-2': ('1', '2'), ...}."""
    found = {
        "-".join(schedule[:length]): tuple(schedule[:length])
        for schedule in settings.schedules
        for length in range(1, len(schedule) + 1)
    }
    return dict(sorted(found.items(), key=lambda item: (len(item[1]), item[0])))


def schedules(settings: Settings) -> list[str]:
    """Names of the schedules, in the order of the configuration."""
    return ["-".join(schedule) for schedule in settings.schedules]


def folds(settings: Settings) -> list[str]:
    """Names of the folds: fold0, fold1, ..."""
    return [f"fold{index}" for index in range(settings.folds.number)]


def leak_splits(settings: Settings) -> dict[str, list[str]]:
    """Kind of folds -> names of its folds, where a leak study is made: row-fold0, row-fold1, ...

    The study's own kind keeps its names, and so what was trained on it.
    """
    leak = settings.evaluation.leak
    if leak is None or settings.folds.group == "official":
        return {}
    own = settings.folds.group
    return {group: [fold if group == own else f"{group}-{fold}" for fold in folds(settings)] for group in leak.groups}


def last_stage(settings: Settings, prefix: str) -> str:
    """Name of the stage that a prefix ends on."""
    return prefixes(settings)[prefix][-1]


def used_stages(settings: Settings) -> list[str]:
    """Names of the stages that some schedule uses, in the order of the configuration."""
    return [stage for stage in settings.stages if any(stage in schedule for schedule in settings.schedules)]


def splits(settings: Settings, prefix: str) -> list[str]:
    """The splits that a prefix is trained on: `shared` alone, or every fold."""
    stages = prefixes(settings)[prefix]
    per_fold = any(settings.stages[stage].data == settings.folds.dataset for stage in stages)
    return folds(settings) if per_fold else [SHARED]


def way(settings: Settings, prefix: str) -> str:
    """How a prefix came to be, in the terms of arXiv 2402.16832: only the projection trained, or more than that."""
    stages = prefixes(settings)[prefix]
    return "end to end" if any("lora" in settings.stages[stage].train for stage in stages) else "projection only"


def parent(settings: Settings, checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint that training starts from; None means a fresh connector on the base models."""
    stages = prefixes(settings)[checkpoint.prefix]
    if len(stages) == 1:
        return None
    prefix = "-".join(stages[:-1])
    split = SHARED if splits(settings, prefix) == [SHARED] else checkpoint.split
    return Checkpoint(prefix, split, checkpoint.seed)


def checkpoints(settings: Settings) -> list[Checkpoint]:
    """Every training of the study, parents before children."""
    return [
        Checkpoint(prefix, split, seed)
        for prefix in prefixes(settings)
        for split in splits(settings, prefix)
        for seed in settings.seeds
    ]


def leak_checkpoints(settings: Settings) -> list[Checkpoint]:
    """The trainings that the leak study adds to those of the study, parents before children."""
    wanted = settings.evaluation.leak.schedules if settings.evaluation.leak else []
    return [
        Checkpoint(prefix, split, seed)
        for prefix in prefixes(settings)
        if any(name == prefix or name.startswith(f"{prefix}-") for name in wanted)
        and splits(settings, prefix) != [SHARED]
        for group, names in leak_splits(settings).items()
        if group != settings.folds.group
        for split in names
        for seed in settings.seeds
    ]


def folds_name(split: str) -> str:
    """Name, without suffix, of the files that say what a fold holds out: folds, or folds-row for row-fold0."""
    group, _, _ = split.rpartition("-")
    return f"folds-{group}" if group else "folds"


def representations(settings: Settings) -> list[str]:
    """What is probed: the vision features, a random connector, and the connector of every prefix."""
    return [PRE_PROJECTION, RANDOM_CONNECTOR, *prefixes(settings)]
