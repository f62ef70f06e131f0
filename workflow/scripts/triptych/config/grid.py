"""The grid of trainings: which checkpoints a study needs, and from which parent each one starts.

A checkpoint is named by the stages behind it, its split and its seed. Its split is `shared` until the first stage
that runs per fold, then `fold0`, `fold1`, ... Schedules with equal first stages share those checkpoints.

An ablation is one more schedule, with settings of its own. It shares what is trained alike, and its name is added where
it departs from the base: `1-2+slow`, then `1-2+slow-3`. The settings of a prefix are asked for here, and nowhere else.
"""

from dataclasses import dataclass, field
from functools import cache

from triptych.config.ablations import trained_as, varied
from triptych.config.base import Record
from triptych.config.settings import Settings
from triptych.config.stages import Stage
from triptych.io.manifest import canonical_json

SHARED = "shared"


ROLES = ("vision_encoder", "language_model")


# What is probed beside checkpoints: vision features as they are, and behind a connector that nothing has trained.
PRE_PROJECTION = "pre-projection"


RANDOM_CONNECTOR = "random-connector"


# Baselines that answer on the folds of every kind of the leak study, because they cost nothing.
LOOKUPS = ("majority-per-question", "nearest-images")


@dataclass(frozen=True)
class Checkpoint:
    """One cell of the grid."""

    prefix: str
    split: str
    seed: int


@dataclass(frozen=True)
class Prefix:
    """What stands behind a prefix.

    Attributes:
        stages: their names.
        before: the prefixes on the way to it, the shortest first.
        settings: of all that trains it: the study's, or those of the ablation that first needs it.
        vision_encoder: name of the model's folder.
        language_model: the same.
    """

    stages: tuple[str, ...]
    before: tuple[str, ...]
    settings: Settings
    vision_encoder: str
    language_model: str


@dataclass
class _Grid:
    prefixes: dict[str, Prefix] = field(default_factory=dict)
    arms: list[str] = field(default_factory=list)
    models: dict[str, Record] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    known: dict[tuple, str] = field(default_factory=dict)  # parent, stage and what trains it -> prefix

    def model(self, settings: Settings, role: str, tag: str) -> str:
        """Name of the folder of a model: that of an equal one, or a new one."""
        model = getattr(settings.models, role)
        same = [name for name, other in self.models.items() if name.partition("+")[0] == role and other == model]
        name = same[0] if same else f"{role}+{tag}" if tag else role
        self.models[name] = model
        return name

    def walk(self, base: Settings, settings: Settings, schedule: list[str], tag: str) -> None:
        """Add a schedule; an ablation's `tag` is put where it first trains otherwise than the base."""
        ablation, place = tag, f"ablations.{tag}" if tag else "schedules"
        folders = [self.model(settings, role, tag) for role in ROLES]
        before: tuple[str, ...] = ()
        for length, stage in enumerate(schedule, 1):
            parent = before[-1] if before else ""
            key = (parent, stage, _what_trains(settings, stage))
            name = self.known.get(key)
            if name is None:
                name = f"{parent}-{stage}" if parent else stage
                if tag and key[2] != _what_trains(base, stage):
                    name, tag = f"{name}+{tag}", ""
                elif ablation and name in self.prefixes:  # of an ablation that begins alike and then differs
                    name, tag = f"{name}+{ablation}", ""
                if name in self.prefixes:
                    self.faults.append(f"{place}: '{name}' is the name of another training, too; rename the ablation")
                    return
                self.known[key] = name
                self.prefixes[name] = Prefix(tuple(schedule[:length]), before, settings, *folders)
            before = (*before, name)
        if name in self.arms:
            self.faults.append(f"{place}: trains the same as '{name}', which is there already; drop one")
        self.arms.append(name)


def _what_trains(settings: Settings, stage: str) -> str:
    """All settings that the training of a stage depends on, beside its parent."""
    lora = settings.lora.model_dump() if "lora" in settings.stages[stage].train else None
    models = settings.models.model_dump()
    return canonical_json([trained_as(settings.stages[stage]), settings.connector.model_dump(), lora, models])


@cache
def _grid(settings: Settings) -> _Grid:
    """The grid of a study, made once: the thousands of jobs of a large one all ask for it."""
    grid = _Grid()
    for schedule in settings.schedules:
        grid.walk(settings, settings, schedule, "")
    for name in settings.ablations:
        variant = varied(settings, name)
        [schedule] = variant.schedules
        grid.walk(settings, variant, schedule, name)
    grid.prefixes = dict(sorted(grid.prefixes.items(), key=lambda item: (len(item[1].stages), item[0])))
    return grid


def faults(settings: Settings) -> list[str]:
    """What is wrong with the names that ablations lead to, a line for each fault."""
    datasets = settings.expanded_datasets()
    features = [f"{name}{tag}" for name in datasets for tag in tags(settings) if tag]
    clashes = [name for name in features if name in datasets]
    return _grid(settings).faults + [
        f"datasets.{name}: is also the name of an ablation's features; rename one" for name in clashes
    ]


def prefixes(settings: Settings) -> dict[str, Prefix]:
    """Every prefix of every schedule and ablation by name, shortest first: 1, 1-2, 1-2+slow, ..."""
    return _grid(settings).prefixes


def schedules(settings: Settings) -> list[str]:
    """Names of the schedules, then of the ablations' schedules, in the order of the configuration."""
    return _grid(settings).arms


def ways(settings: Settings) -> dict[str, list[str]]:
    """Schedule, or ablation's schedule -> the prefixes that it passes through, itself the last."""
    return {arm: [*prefixes(settings)[arm].before, arm] for arm in schedules(settings)}


def settings_of(settings: Settings, prefix: str) -> Settings:
    """The settings that a prefix is trained with: the study's, or an ablation's."""
    return prefixes(settings)[prefix].settings


def stage_of(settings: Settings, prefix: str) -> Stage:
    """The settings of the stage that a prefix ends on."""
    return settings_of(settings, prefix).stages[last_stage(settings, prefix)]


def models(settings: Settings) -> dict[str, Record]:
    """Name of a folder below `models/` -> settings of the model in it: the base's two, then the ablations'."""
    return _grid(settings).models


def tags(settings: Settings) -> list[str]:
    """What stands behind the role in names of models, and behind the data set in those of features: '', '+finer'."""
    return sorted({name.removeprefix(role) for name in models(settings) for role in ROLES if name.startswith(role)})


def features(settings: Settings, dataset: str, prefix: str) -> str:
    """Name of the folder of a data set's vision features, by the encoder of a prefix: medical, or medical+finer."""
    return dataset + prefixes(settings)[prefix].vision_encoder.removeprefix("vision_encoder")


def used_datasets(settings: Settings) -> list[str]:
    """Names of the data sets that some stage or the folds use, sorted."""
    return sorted({settings.folds.dataset, *(stage_of(settings, prefix).data for prefix in prefixes(settings))})


def used_features(settings: Settings) -> list[str]:
    """Names of the folders of features that some training, prediction or baseline reads, sorted."""
    read = {settings.folds.dataset}
    read |= {features(settings, stage_of(settings, prefix).data, prefix) for prefix in prefixes(settings)}
    return sorted(read)


def training_job(settings: Settings, checkpoint: "Checkpoint") -> dict:
    """All that a training is told: a change of it, and of it alone, trains again."""
    of, stage = settings_of(settings, checkpoint.prefix), stage_of(settings, checkpoint.prefix)
    return {
        "prefix": checkpoint.prefix,
        "split": checkpoint.split,
        "seed": checkpoint.seed,
        "stage_name": last_stage(settings, checkpoint.prefix),
        "stage": stage.model_dump(by_alias=True),
        "connector": of.connector.model_dump(),
        "lora": of.lora.model_dump() if "lora" in stage.train else None,
        "training": of.training.model_dump(exclude=of.training.RUNNING),
    }


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
    return prefixes(settings)[prefix].stages[-1]


def used_stages(settings: Settings) -> list[str]:
    """Names of the stages that some schedule or ablation uses, in the order of the configuration."""
    used = {stage for prefix in prefixes(settings).values() for stage in prefix.stages}
    return [stage for stage in settings.stages if stage in used]


def splits(settings: Settings, prefix: str) -> list[str]:
    """The splits that a prefix is trained on: `shared` alone, or every fold."""
    behind = prefixes(settings)[prefix]
    per_fold = any(behind.settings.stages[stage].data == settings.folds.dataset for stage in behind.stages)
    return folds(settings) if per_fold else [SHARED]


def way(settings: Settings, prefix: str) -> str:
    """How a prefix came to be, in the terms of arXiv 2402.16832: only the projection trained, or more than that."""
    behind = prefixes(settings)[prefix]
    adapted = any("lora" in behind.settings.stages[stage].train for stage in behind.stages)
    return "end to end" if adapted else "projection only"


def parent(settings: Settings, checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint that training starts from; None means a fresh connector on the base models."""
    before = prefixes(settings)[checkpoint.prefix].before
    if not before:
        return None
    prefix = before[-1]
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
        if any(prefix in ways(settings)[name] for name in wanted) and splits(settings, prefix) != [SHARED]
        for group, names in leak_splits(settings).items()
        if group != settings.folds.group
        for split in names
        for seed in settings.seeds
    ]


def trainings(settings: Settings) -> list[Checkpoint]:
    """All trainings: those of the study, then those that the leak study adds."""
    return [*checkpoints(settings), *leak_checkpoints(settings)]


def folds_name(split: str) -> str:
    """Name, without suffix, of the files that say what a fold holds out: folds, or folds-row for row-fold0."""
    group, _, _ = split.rpartition("-")
    return f"folds-{group}" if group else "folds"


def representations(settings: Settings) -> list[str]:
    """What is probed: the vision features, a random connector, and the connector of every prefix."""
    return [PRE_PROJECTION, RANDOM_CONNECTOR, *prefixes(settings)]


def reference(settings: Settings, representation: str) -> str | None:
    """What a probed representation is compared with: the checkpoint before medical data, else a random connector.

    None for what is not trained, and where the base's random connector is no fair comparison: another connector, or
    another model on either side of it.
    """
    if representation in (PRE_PROJECTION, RANDOM_CONNECTOR):
        return None
    behind = prefixes(settings)[representation]
    before = [prefix for prefix in behind.before if splits(settings, prefix) == [SHARED]]
    if before:
        return before[-1]
    own = (behind.settings.connector, behind.settings.models)
    return RANDOM_CONNECTOR if own == (settings.connector, settings.models) else None
