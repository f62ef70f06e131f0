"""The grid of trainings: which checkpoints a study needs, and from which parent each one starts.

A checkpoint is named by the stages behind it, its split and its seed. Its split is `shared` until the first stage
that runs per fold, then `fold0`, `fold1`, ... Schedules with equal first stages share those checkpoints. With
`folds.shared_stages: per-fold` shared stages are drawn anew for each fold: `shared-fold0` is the split of what is
trained on the same data, and handed on to `fold0` alone.

An ablation is one more schedule, with settings of its own. It shares what is trained alike, and its name is added where
it departs from the base: `1-2+slow`, then `1-2+slow-3`. Code asks for the settings of a prefix here, and nowhere else.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

from triptych.config.ablations import varied, what_trains
from triptych.config.arms import PRE_PROJECTION, RANDOM_CONNECTOR
from triptych.config.base import Part, Record
from triptych.config.clashes import clashes
from triptych.config.evaluation import Layer
from triptych.config.settings import Settings
from triptych.config.stages import Stage
from triptych.config.sweeps import points

SHARED = "shared"
ROLES = ("vision_encoder", "language_model")


@dataclass(frozen=True)
class Checkpoint:
    """One cell of the grid."""

    prefix: str
    split: str
    seed: int


@dataclass(frozen=True)
class Prefix:
    """The first stages of a schedule.

    Attributes:
        stages: names of the stages.
        before: the shorter prefixes that lead to this one, the shortest first.
        settings: the settings that train it: the study's, or those of the ablation that first needs it.
        vision_encoder: name of the vision encoder's folder.
        language_model: name of the language model's folder.
    """

    stages: tuple[str, ...]
    before: tuple[str, ...]
    settings: Settings
    vision_encoder: str
    language_model: str


@dataclass(frozen=True)
class Representation:
    """What is probed.

    Attributes:
        of: a prefix, or one of the two that nothing trains: `arms.PRE_PROJECTION`, `arms.RANDOM_CONNECTOR`.
        layer: the hidden states after that layer of the language model; None: its input, the image tokens.
        lora: with the adapters of the checkpoint, where it has some.
    """

    of: str
    layer: Layer | None = None
    lora: bool = True

    @property
    def name(self) -> str:
        """Name it in tables and paths: 1-2-3, 1-2-3_last, 1-2-3_last-no-lora; no prefix has a `_`."""
        return self.of + (f"_{self.layer}" if self.layer else "") + ("" if self.lora else "-no-lora")


class Grid:
    """All trainings of a study.

    Attributes:
        prefixes: every prefix of every schedule and ablation by name, shortest first: 1, 1-2, 1-2+slow, ...
        schedules: names of the schedules in the order of the configuration, then those of the ablations' schedules.
        sweeps: name of a sweep -> its values, ascending -> the schedule of each, which may be one of the above.
        models: name of a folder below `models/` -> settings of the model in it: the base's two, then the ablations'.
        errors: what is wrong with the names that ablations lead to, a line each.
    """

    def __init__(self, settings: Settings):
        """Lay out the grid of a study."""
        self.settings = settings
        self.prefixes: dict[str, Prefix] = {}
        self.schedules: list[str] = []
        self.sweeps: dict[str, dict[float, str]] = {}
        self.models: dict[str, Record] = {}
        self.errors: list[str] = []
        self._known: dict[tuple, str] = {}  # parent, stage and what trains it -> prefix
        for schedule in settings.schedules:
            self._add_schedule(settings, schedule, "")
        for name in settings.ablations:
            variant = varied(settings, name)
            [schedule] = variant.schedules
            self._add_schedule(variant, schedule, name)
        for name in settings.sweeps:
            found = points(settings, name)
            self.sweeps[name] = {one.value: self._add(one.settings, one.schedule, one.tag) for one in found}
            self._report_equal(name)
        self.prefixes = dict(sorted(self.prefixes.items(), key=lambda item: (len(item[1].stages), item[0])))
        self.errors += clashes(settings, self.prefixes, self.models, self.tags)
        primary, others = settings.evaluation.primary, self.schedules[1:]
        if primary is not None and primary not in others:
            known = f"one of {', '.join(others)}" if others else "another schedule, which this study lacks"
            self.errors.append(f"evaluation.primary: '{primary}' is not compared with the first schedule; name {known}")

    def _add_schedule(self, settings: Settings, schedule: list[str], tag: str) -> None:
        """Add a schedule of the study or, with its name as `tag`, of an ablation, which must train something new."""
        name = self._add(settings, schedule, tag)
        if name in self.schedules:
            place = f"ablations.{tag}" if tag else "schedules"
            self.errors.append(f"{place}: trains the same as '{name}', which already exists; remove one")
        self.schedules += [name] if name else []

    def _report_equal(self, sweep: str) -> None:
        """Add an error where two values of a sweep train the same: its curve would be flat by construction."""
        seen: dict[str, float] = {}
        for value, arm in self.sweeps[sweep].items():
            if arm and arm in seen:
                equal = f"values {seen[arm]:g} and {value:g} train the same, '{arm}'"
                self.errors.append(f"sweeps.{sweep}: {equal}; remove one, or name a setting that the schedule uses")
            seen[arm] = value

    def _add(self, settings: Settings, schedule: list[str], tag: str) -> str:
        """Add the prefixes of a schedule and name it; a `tag` is put where it first trains otherwise than the base.

        Nothing is returned where a name is taken, which is one of the errors.
        """
        kind = "ablations" if tag in self.settings.ablations else "sweeps"
        ablation, place = tag, f"{kind}.{tag}" if tag else "schedules"
        folders = [self._model(settings, role, tag) for role in ROLES]
        before: tuple[str, ...] = ()
        for length, stage in enumerate(schedule, 1):
            parent = before[-1] if before else ""
            key = (parent, stage, what_trains(settings, stage))
            name = self._known.get(key)
            if name is None:
                name = f"{parent}-{stage}" if parent else stage
                if tag and key[2] != what_trains(self.settings, stage):
                    name, tag = f"{name}+{tag}", ""
                elif ablation and name in self.prefixes:  # of an ablation that begins alike and then differs
                    name, tag = f"{name}+{ablation}", ""
                if name in self.prefixes:
                    self.errors.append(f"{place}: '{name}' is also the name of another prefix; rename the ablation")
                    return ""
                self._known[key] = name
                self.prefixes[name] = Prefix(tuple(schedule[:length]), before, settings, *folders)
            before = (*before, name)
        return name

    def _model(self, settings: Settings, role: str, tag: str) -> str:
        """Name the folder of a model: that of an equal one, or a new one."""
        model = getattr(settings.models, role)
        same = [name for name, other in self.models.items() if name.partition("+")[0] == role and other == model]
        name = same[0] if same else f"{role}+{tag}" if tag else role
        self.models[name] = model
        return name

    # Schedules and their stages

    @cached_property
    def lineage(self) -> dict[str, list[str]]:
        """Schedule -> the prefixes that it passes through, itself the last."""
        return {arm: [*self.prefixes[arm].before, arm] for arm in self.schedules}

    @cached_property
    def swept(self) -> list[str]:
        """Schedules that only sweeps have: answered, and compared in the tables of scale alone."""
        arms = dict.fromkeys(arm for values in self.sweeps.values() for arm in values.values())
        return [arm for arm in arms if arm not in self.schedules]

    @cached_property
    def main_prefixes(self) -> list[str]:
        """Prefixes that schedules and ablations pass through, in the order of `prefixes`."""
        passed = {prefix for way in self.lineage.values() for prefix in way}
        return [prefix for prefix in self.prefixes if prefix in passed]

    @cached_property
    def compared(self) -> list[str]:
        """Schedules in the order in which they are compared: the first, that of the primary comparison, the others."""
        first, *others = self.schedules
        return [first, *sorted(others, key=lambda arm: arm != self.settings.evaluation.primary)]

    @cached_property
    def drawn_once(self) -> dict[str, str]:
        """Schedule -> the last prefix on its way that is trained once for all folds, where there is one."""
        once = self.shared_prefixes if SHARED in self.shared_splits else []
        arms = {arm: [*self.prefixes[arm].before, arm] for arm in (*self.schedules, *self.swept)}
        shared = {arm: [prefix for prefix in way if prefix in once] for arm, way in arms.items()}
        return {arm: prefixes[-1] for arm, prefixes in shared.items() if prefixes}

    @cached_property
    def used_stages(self) -> list[str]:
        """Names of the stages that some schedule uses, in the order of the configuration."""
        used = {stage for prefix in self.main_prefixes for stage in self.prefixes[prefix].stages}
        return [stage for stage in self.settings.stages if stage in used]

    def settings_of(self, prefix: str) -> Settings:
        """Give the settings that a prefix is trained with: the study's, or an ablation's."""
        return self.prefixes[prefix].settings

    def last_stage(self, prefix: str) -> str:
        """Name the stage that a prefix ends on."""
        return self.prefixes[prefix].stages[-1]

    def stage_of(self, prefix: str) -> Stage:
        """Give the settings of the stage that a prefix ends on."""
        return self.settings_of(prefix).stages[self.last_stage(prefix)]

    def trained_parts(self, prefix: str) -> str:
        """Say what a prefix has trained, in the terms of arXiv 2402.16832: `projection only` or `end to end`."""
        others = ("lora", "language_model", "vision_encoder")
        return "end to end" if any(self.has_trained(prefix, part) for part in others) else "projection only"

    # Data, models and features

    @cached_property
    def tags(self) -> list[str]:
        """What follows the role in names of models, and the data set in those of features: '', '+finer'."""
        return sorted({name.removeprefix(role) for name in self.models for role in ROLES if name.startswith(role)})

    @cached_property
    def used_datasets(self) -> list[str]:
        """Names of the data sets that some stage, the folds or transfer use, sorted."""
        return sorted({*self.training_datasets, *self.settings.evaluation.datasets})

    @cached_property
    def training_datasets(self) -> list[str]:
        """Names of the data sets that some stage or the folds use, sorted."""
        return sorted({self.settings.folds.dataset, *(self.stage_of(prefix).data for prefix in self.prefixes)})

    @cached_property
    def used_features(self) -> list[str]:
        """Names of the folders of features that some training, prediction or baseline reads, sorted."""
        asked = self.settings.evaluation.datasets
        read = {self.settings.folds.dataset, *asked}  # by baselines
        read |= {self.features(name, arm) for name, arm in product(asked, self.schedules)}
        return sorted(read | {self.features(self.stage_of(prefix).data, prefix) for prefix in self.prefixes})

    def features(self, dataset: str, prefix: str) -> str:
        """Name the folder of a data set's features by the encoder of a prefix: medical, or medical+finer."""
        return dataset + self.prefixes[prefix].vision_encoder.removeprefix("vision_encoder")

    # Splits

    @cached_property
    def folds(self) -> list[str]:
        """Names of the folds: fold0, fold1, ..."""
        return [f"fold{index}" for index in range(self.settings.folds.number)]

    @cached_property
    def leak_splits(self) -> dict[str, list[str]]:
        """Kind of folds -> names of its folds, where a leak study is made: row-fold0, row-fold1, ...

        The study's own kind keeps its names, and so what was trained on it.
        """
        leak, own = self.settings.evaluation.leak, self.settings.folds.group
        if leak is None or own == "official":
            return {}
        return {group: [fold if group == own else f"{group}-{fold}" for fold in self.folds] for group in leak.groups}

    @cached_property
    def shared_splits(self) -> list[str]:
        """Names of the splits of shared stages: `shared` alone, or one for every fold."""
        once = self.settings.folds.shared_stages == "once"
        return [SHARED] if once else [shared_split(fold) for fold in self.folds]

    @cached_property
    def shared_prefixes(self) -> list[str]:
        """Prefixes of shared stages alone, which no data of a fold have trained: those that end on captions."""
        folded = self.settings.folds.dataset
        return [
            name
            for name, behind in self.prefixes.items()
            if all(behind.settings.stages[stage].data != folded for stage in behind.stages)
        ]

    @cached_property
    def originals(self) -> list[str]:
        """Prefixes that are a model before medical data: those of shared stages, and those that train nothing."""
        trains = {
            name: [stage for stage in behind.stages if behind.settings.stages[stage].train]
            for name, behind in self.prefixes.items()
        }
        return [name for name in self.prefixes if name in self.shared_prefixes or not trains[name]]

    def splits(self, prefix: str) -> list[str]:
        """Name the splits that a prefix is trained on: those of shared stages, or every fold."""
        return self.shared_splits if prefix in self.shared_prefixes else self.folds

    # Trainings

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """Every training of the study, parents before children."""
        return [
            Checkpoint(prefix, split, seed)
            for prefix in self.prefixes
            for split in self.splits(prefix)
            for seed in self.settings.seeds
        ]

    @cached_property
    def leak_checkpoints(self) -> list[Checkpoint]:
        """The trainings that the leak study adds to those of the study, parents before children."""
        wanted = self.settings.evaluation.leak.schedules if self.settings.evaluation.leak else []
        return [
            Checkpoint(prefix, split, seed)
            for prefix in self.prefixes
            if any(prefix in self.lineage[name] for name in wanted) and prefix not in self.shared_prefixes
            for group, names in self.leak_splits.items()
            if group != self.settings.folds.group
            for split in names
            for seed in self.settings.seeds
        ]

    @cached_property
    def trainings(self) -> list[Checkpoint]:
        """All trainings: those of the study, then those that the leak study adds."""
        return [*self.checkpoints, *self.leak_checkpoints]

    def parent(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Give the checkpoint that a training starts from; None of a first stage, which starts from the models."""
        before = self.prefixes[checkpoint.prefix].before
        if not before:
            return None
        prefix, split = before[-1], checkpoint.split
        if prefix in self.shared_prefixes and not is_shared(split):
            split = SHARED if SHARED in self.shared_splits else shared_split(split)
        return Checkpoint(prefix, split, checkpoint.seed)

    # Probes

    @cached_property
    def representations(self) -> dict[str, Representation]:
        """What is probed, by name: the vision features, a random connector, the connector of every prefix.

        Then, where the settings name layers, the language model behind each connector that it sees an image through.
        """
        probe = self.settings.evaluation.probe
        seeing = [name for name in self.main_prefixes if not self.stage_of(name).blind]
        found = [Representation(name) for name in (PRE_PROJECTION, RANDOM_CONNECTOR, *self.main_prefixes)]
        for layer, name in product(probe.layers if probe else [], [RANDOM_CONNECTOR, *seeing]):
            found.append(Representation(name, layer))
            if name in self.prefixes and self.has_trained(name, "lora"):
                found.append(Representation(name, layer, lora=False))
        return {one.name: one for one in found}

    def has_trained(self, prefix: str, part: Part) -> bool:
        """Tell whether a stage of a prefix trains a part; adapters on the vision encoder are a part of it, too."""
        behind, parts = self.prefixes[prefix], {part}
        if part == "vision_encoder" and behind.settings.lora.vision_target_modules:
            parts.add("lora")
        return any(parts.intersection(behind.settings.stages[stage].train) for stage in behind.stages)

    def reference(self, representation: str) -> str | None:
        """Name what a representation is compared with: the checkpoint before medical data, else a random connector.

        None for what is not trained, and where the base's random connector is no fair comparison: another connector,
        or another model on either side of it. Hidden states are compared with those of the same layer.
        """
        found = self.representations[representation]
        if found.layer:
            before = self.reference(found.of)
            return before and Representation(before, found.layer).name
        if representation in (PRE_PROJECTION, RANDOM_CONNECTOR):
            return None
        behind = self.prefixes[representation]
        if before := [prefix for prefix in behind.before if prefix in self.originals]:
            return before[-1]
        own = (behind.settings.connector, behind.settings.models)
        return RANDOM_CONNECTOR if own == (self.settings.connector, self.settings.models) else None


def is_shared(split: str) -> bool:
    """Tell whether a split is that of a shared stage: `shared`, or `shared-fold0` where it is drawn for a fold."""
    return split.partition("-")[0] == SHARED


def shared_split(fold: str) -> str:
    """Name the split of shared stages that are drawn for a fold: shared-fold0, for folds of every kind."""
    return f"{SHARED}-{fold.rpartition('-')[2]}"


def cut_of(split: str) -> str:
    """Give what names of files say of a fold's kind: nothing of the study's own, -row of row-fold0."""
    group, _, _ = split.rpartition("-")
    return f"-{group}" if group else ""


def folds_name(split: str) -> str:
    """Name, without suffix, the files that say what a fold holds out: folds, or folds-row for row-fold0."""
    return f"folds{cut_of(split)}"
