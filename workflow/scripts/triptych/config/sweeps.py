"""Sweeps: one setting with several values, each of which is trained as an ablation is."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from triptych.config.ablations import SECTIONS, applied, merged, variant_errors
from triptych.config.base import Record
from triptych.config.datasets import Captions
from triptych.config.errors import unknown
from triptych.config.settings import Ablation, Settings, Sweep

SAMPLES = ("max_samples", "fraction")  # settings of a stage, which is left out where they are 0


@dataclass(frozen=True)
class Point:
    """One value of a sweep.

    Attributes:
        value: of the setting.
        tag: name of the ablation that it would be, such as captions-1000.
        settings: the study's with the value in its place.
        schedule: the stages.
    """

    value: float
    tag: str
    settings: Settings
    schedule: list[str]


def points(settings: Settings, name: str) -> list[Point]:
    """List what a sweep trains, by ascending value."""
    found = []
    for value in sorted(settings.sweeps[name].values):
        variant = applied(settings, as_ablation(settings, settings.sweeps[name], value))
        found.append(Point(value, tag(name, value), variant, variant.schedules[0]))
    return found


def tag(name: str, value: float) -> str:
    """Name one value of a sweep: captions-1000, medical-0.1."""
    return f"{name}-{_number(value)}"


def as_ablation(settings: Settings, sweep: Sweep, value: float) -> Ablation:
    """Write one value of a sweep as the ablation that trains it; the paths of its settings are known."""
    schedule, change = _stages_left(settings, sweep, value), {}
    for setting in (sweep.setting, *sweep.also):
        path = _path(settings, setting)
        if path[0] != "stages" or path[1] in schedule or value > 0:
            change = merged(change, _difference(settings, path, value))
    return Ablation.model_validate({**change, "schedule": schedule})


def _difference(settings: Settings, path: tuple[str, ...], value: float) -> dict[str, Any]:
    """Write one setting's value as a section of an ablation, with what goes with it."""
    found: dict[str, Any] = {path[-1]: _number(value)}
    if path == ("connector", "pool"):
        found = {"kind": "mlp2x_gelu"} if value == 1 else {"kind": "pooled-mlp", **found}
    elif path == ("lora", "rank") and not settings.lora.use_rslora:
        found["alpha"] = _number(settings.lora.alpha * value / settings.lora.rank)
    elif path[0] == "stages" and path[2:] == ("max_samples",):
        described = settings.expanded_datasets()[settings.stages[path[1]].data]
        if isinstance(described, Captions) and value >= described.size:
            found = {path[-1]: None}  # all of them, as the base has it that states no number
    for key in reversed(path[:-1]):
        found = {key: found}
    return found


def _stages_left(settings: Settings, sweep: Sweep, value: float) -> list[str]:
    """List the stages of a sweep's schedule without those that have 0 samples."""
    paths = [_path(settings, setting) for setting in (sweep.setting, *sweep.also)]
    samples = [path[1] for path in paths if path[0] == "stages" and path[2:] in [(key,) for key in SAMPLES]]
    return [stage for stage in sweep.schedule or settings.schedules[0] if value > 0 or stage not in samples]


def errors(settings: Settings) -> list[str]:
    """Say what is wrong with the sweeps of a study that is right without them, a line for each error."""
    return [f"sweeps.{name}{line}" for name in settings.sweeps for line in _errors(settings, name)]


def _errors(settings: Settings, name: str) -> Iterator[str]:
    sweep = settings.sweeps[name]
    for taken in settings.ablations:
        if taken in (name, *(tag(name, value) for value in sweep.values)):
            yield f": '{taken}' is the name of an ablation, too; rename one"
    if len(set(sweep.values)) < len(sweep.values):
        yield ".values: an entry occurs twice"
    if strangers := [stage for stage in sweep.schedule or () if stage not in settings.stages]:
        yield f".schedule: {unknown(strangers[0], 'stages', settings.stages)}"
    elif faults := [fault for one in (sweep.setting, *sweep.also) if (fault := _unknown_path(settings, one))]:
        yield from (f": {fault}" for fault in faults)
    else:
        for value in sweep.values:
            if not _stages_left(settings, sweep, value):
                yield ".values: 0 leaves no stage of the schedule; leave it out"
                continue
            found = variant_errors(settings, as_ablation(settings, sweep, value))
            yield from (f".values: {_number(value)} is not possible: {line.lstrip(' .:')}" for line in found)


def _path(settings: Settings, setting: str) -> tuple[str, ...]:
    """Split a setting's path; names of stages may hold dots."""
    stages = sorted((stage for stage in settings.stages if setting.startswith(f"stages.{stage}.")), key=len)
    if stages:
        return "stages", stages[-1], *setting.removeprefix(f"stages.{stages[-1]}.").split(".")
    return tuple(setting.split("."))


def _unknown_path(settings: Settings, setting: str) -> str | None:
    """Say where the path of a setting leads nowhere, or to a section."""
    if setting.partition(".")[0] not in SECTIONS:
        return f"'{setting}' is not below {', '.join(SECTIONS)}; name a number such as stages.1.max_samples"
    node = settings
    for key in _path(settings, setting):
        known = list(node) if isinstance(node, Mapping) else list(type(node).model_fields) if _inner(node) else []
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            return f"'{setting}' is not a known setting: there is no {key}{hint}"
        node = node[key] if isinstance(node, Mapping) else getattr(node, key)
    return f"'{setting}' is a section; name one of its settings" if _inner(node) else None


def _inner(node: object) -> bool:
    return isinstance(node, Mapping | Record)


def _number(value: float) -> int | float:
    """Write a whole number as one, as settings that are whole numbers want it."""
    return int(value) if float(value).is_integer() else value
