"""What steps on a GPU ask a cluster for: memory and time, by size of models and data, and which of them share a job.

Every Snakemake reads this, so it imports little.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Self

from triptych.commands import cost
from triptych.config.grid import SHARED, Checkpoint
from triptych.config.paths import MODEL_ANSWERS, STEPS
from triptych.config.study import Study
from triptych.config.wildcards import EACH, asked_views
from triptych.io.manifest import canonical_json

GPU_STEPS = ("encode_images", "encode_occluded", "train_stage", *MODEL_ANSWERS, "occlude")
# Memory of the machine, not of its GPU, in MB. Measured peaks stand beside it in the plan.
BASE = 8000  # Python, torch with CUDA, tables, images that are decoded ahead
PER_WEIGHT = 10  # bytes of a parameter: 32 bits, twice while it is read, and room for 2 more
# Minutes
START = 10  # of every step: torch and models from a slow disk; the five before its limit in which a training saves
SLACK = 3  # times the plan's estimate, which assumes a rate
LONGEST = 720  # of one job of the cluster; what takes longer is saved then, and goes on in the next attempt
IMAGES_A_SECOND = 20  # that are decoded and encoded at least


@dataclass(frozen=True)
class Step:
    """One step on a GPU.

    Attributes:
        rule: name of its rule.
        cell: the checkpoint that it trains or asks; None for one that encodes images.
        wildcards: values of its wildcards.
    """

    rule: str
    cell: Checkpoint | None
    wildcards: Mapping[str, Any] = field(hash=False)


def gpu_steps(study: Study) -> Iterator[Step]:
    """List all steps of a study that need a GPU, each after those whose results it reads."""
    for rule in GPU_STEPS:
        for wildcards in EACH[STEPS[rule].each](study):
            yield Step(rule, _cell(wildcards), wildcards)


def _cell(wildcards: Mapping[str, Any]) -> Checkpoint | None:
    if "prefix" not in wildcards:
        return None
    split = wildcards.get("split") or wildcards.get("fold") or f"{SHARED}{wildcards['draw']}"
    return Checkpoint(wildcards["prefix"], split, int(wildcards["seed"]))


@dataclass(frozen=True)
class Grouping:
    """How steps share jobs, as Snakemake's options `groups` and `group-components` say.

    Attributes:
        names: rule -> pattern of the group's name, in which wildcards stand: "{split}-seed{seed}".
        components: such a pattern -> how many unconnected parts of a group are one job; 1 where none is given.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    components: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Take that of a profile's options."""
        return cls(options.get("groups", {}), options.get("group-components", {}))

    def text(self) -> str:
        """Write it as JSON."""
        return canonical_json([dict(self.names), dict(self.components)])


class Requests:
    """What the steps of a study ask for, and the jobs that they are put into."""

    def __init__(self, study: Study, grouping: Grouping):
        """Take a study and how its steps share jobs."""
        self.study, self.grouping = study, grouping
        self._needs: dict[tuple, tuple[float, float]] = {}

    # What one step needs

    def memory(self, rule: str, wildcards: Mapping[str, Any], attempt: int = 1) -> int:
        """MB of a step, half as much again with every attempt."""
        return math.ceil(self._need(rule, wildcards)[0] * (attempt + 1) / 2)

    def minutes(self, rule: str, wildcards: Mapping[str, Any], attempt: int = 1) -> int:
        """Time limit of a step, with every attempt as much again; of a job that would be too long, its share."""
        whole = self._longest.get(self._group(rule, wildcards), 0.0)
        share = min(1.0, LONGEST / whole) if whole else 1.0
        return attempt * math.ceil(self._need(rule, wildcards)[1] * share)

    def _need(self, rule: str, wildcards: Mapping[str, Any]) -> tuple[float, float]:
        """MB and minutes of a step by rule and prefix (and data set, of transfer), or by rule and features."""
        prefix, dataset = wildcards.get("prefix"), wildcards.get("dataset", "")
        key = (rule, prefix, dataset) if prefix else (rule, dataset, wildcards["tag"])
        if key not in self._needs:
            memory, minutes = self._answer(rule, prefix, dataset) if prefix else self._encode(rule, dataset)
            self._needs[key] = memory, min(minutes, LONGEST)
        return self._needs[key]

    def _encode(self, rule: str, dataset: str) -> tuple[float, float]:
        if rule == "encode_occluded":
            images = cost.occluded_views(self.study)
        else:
            if dataset not in self.study.datasets:  # with the tag of another encoder, as features are named
                dataset = dataset.rpartition("+")[0]
            images = cost.questions(self.study, dataset)[1]
        return 2 * BASE, START + SLACK * images / IMAGES_A_SECOND / 60

    def _answer(self, rule: str, prefix: str, transfer: str) -> tuple[float, float]:
        study, settings = self.study, self.study.settings
        trains = rule in ("train_stage", "predict_captions")
        dataset = study.grid.stage_of(prefix).data if trains else transfer or settings.folds.dataset
        stored = 1000 * cost.features_gb(study, prefix, dataset)  # read again and again, best from memory
        memory = BASE + PER_WEIGHT * cost.model_sizes(study, prefix).weights / 1e6 + stored
        if rule == "train_stage":
            if cost.tuned(study, prefix):
                whole = cost.training_gb(study, prefix) + cost.kept_gb(study, prefix)
                on_cpu = whole if settings.runtime.device == "cpu" else 0
                memory += 1000 * (cost.saved_gb(study, prefix) + on_cpu)
            flops, memory = (
                cost.training_cost(study, Checkpoint(prefix, "", 0)).flops,
                memory * settings.runtime.processes,
            )
        elif rule == "occlude":
            flops = cost.occlusion_cost(study, prefix).flops
        else:
            views = len(asked_views(study)) if rule == "predict" else 1
            gold = 0 if rule == "predict_captions" else cost.GOLD
            flops = cost.prediction_cost(study, prefix, transfer).flops * (views + gold)
        rate = settings.plan.tflops * 1e12 * settings.plan.utilisation
        return memory, START + SLACK * flops / rate / 60

    # Which steps share a job

    def _group(self, rule: str, wildcards: Mapping[str, Any]) -> str:
        pattern = self.grouping.names.get(rule)
        return pattern.format_map(wildcards) if pattern else ""

    @cached_property
    def jobs(self) -> list[list[Step]]:
        """Steps of each job of the cluster; unconnected parts of a group are put together as Snakemake may do it."""
        found = []
        for group, parts in self._parts.items():
            size = self._size(parts) if group else 1
            found += [list(chain(*parts[start : start + size])) for start in range(0, len(parts), size)]
        return found

    def longest_jobs(self) -> dict[str, int]:
        """Minutes that the longest job with a step of a rule asks for, by rule."""
        found: dict[str, int] = {}
        for job in self.jobs:
            asked = sum(self.minutes(step.rule, step.wildcards) for step in job)
            found |= {step.rule: max(asked, found.get(step.rule, 0)) for step in job}
        return found

    def _size(self, parts: Sequence[Sequence[Step]]) -> int:
        return self.grouping.components.get(self.grouping.names[parts[0][0].rule], 1)

    @cached_property
    def _parts(self) -> dict[str, list[list[Step]]]:
        """Name of a group -> its steps, in parts that do not depend on each other; "": steps of no group."""
        parts: dict[str, list[list[Step]]] = defaultdict(list)
        of_cell: dict[tuple[str, Checkpoint], list[Step]] = {}  # the part in which a checkpoint is trained
        for step in gpu_steps(self.study):
            group = self._group(step.rule, step.wildcards)
            part = next((of_cell[group, cell] for cell in self._before(step) if (group, cell) in of_cell), None)
            if part is None or not group:
                parts[group].append(part := [])
            part.append(step)
            if step.rule == "train_stage":
                of_cell[group, step.cell] = part
        return parts

    @cached_property
    def _longest(self) -> dict[str, float]:
        """Name of a group -> minutes that its longest job takes, at most."""
        longest = {}
        for group, parts in self._parts.items():
            if group:
                times = [sum(self._need(step.rule, step.wildcards)[1] for step in part) for part in parts]
                longest[group] = sum(sorted(times, reverse=True)[: self._size(parts)])
        return longest

    def starts(self) -> int:
        """How often torch starts: of the answers in one job, those with equal models are given by one process."""

        def process(step: Step) -> object:
            if step.rule not in MODEL_ANSWERS:
                return step
            behind = self.study.grid.prefixes[step.cell.prefix]
            return step.rule, step.wildcards.get("dataset"), behind.vision_encoder, behind.language_model

        return sum(len({process(step) for step in job}) for job in self.jobs)

    def waits(self) -> int:
        """How often a run waits for a GPU in the queue: the most jobs of which each needs the one before."""
        trained = {
            step.cell: number for number, job in enumerate(self.jobs) for step in job if step.rule == "train_stage"
        }
        behind: dict[int, int] = {}

        def wait(number: int) -> int:
            if number not in behind:
                cells = [step.cell for step in self.jobs[number] if step.cell]
                before = {trained[cell] for step in self.jobs[number] for cell in self._before(step)} - {number}
                behind[number] = 1 + max(map(wait, before), default=1 if cells else 0)  # features come first
            return behind[number]

        return max(map(wait, range(len(self.jobs))), default=0)

    def _before(self, step: Step) -> list[Checkpoint]:
        """The checkpoint that a step starts from or asks, where there is one."""
        before = self.study.grid.parent(step.cell) if step.rule == "train_stage" else step.cell
        return [before] if before else []
