"""Ablations: each a schedule of its own, whose settings are the study's with a few differences merged in."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from triptych.config.errors import error_lines, reference_errors, unknown
from triptych.config.settings import Ablation, Settings
from triptych.config.stages import BY_PART, Stage
from triptych.io.manifest import canonical_json

SECTIONS = ("models", "connector", "lora", "stages")


KINDS = ("source", "kind")  # another one has other keys: nothing of the base's is kept


def merged(base: Any, change: Any) -> Any:
    """`base` with the values of `change` in their places; mappings are merged, unless they change `source` or `kind`.

    What belongs to what has changed does not survive it: revision and prompt of a model that becomes another, values of
    parts that train no more.
    """
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return change
    changed = {key for key in change if key in base and change[key] != base[key]}
    if changed.intersection(KINDS):
        return dict(change)
    kept = dict(base)
    if changed & {"repo", "folder"}:
        kept = {key: value for key, value in kept.items() if key not in ("revision", "prompt")}
    if "train" in changed and isinstance(change["train"], list):
        for key in BY_PART:
            if isinstance(kept[key], Mapping):
                kept[key] = {part: value for part, value in kept[key].items() if part in change["train"]}
        if "vision_encoder" not in change["train"]:
            kept.pop("vision", None)
    return kept | {key: merged(kept.get(key), value) for key, value in change.items()}


@cache
def varied(settings: Settings, name: str) -> Settings:
    """The settings of one ablation, as `applied` gives them."""
    return applied(settings, settings.ablations[name])


def applied(settings: Settings, ablation: Ablation) -> Settings:
    """The study's settings with the differences of an ablation, and its schedule alone.

    Raises:
        ValidationError: they are not valid.
    """
    change = ablation.model_dump(exclude_unset=True)
    base = settings.model_dump(exclude={"ablations", "sweeps"})
    sections = {section: merged(base[section], change[section]) for section in SECTIONS if section in change}
    return Settings.model_validate(base | sections | {"schedules": [change.get("schedule") or settings.schedules[0]]})


def errors(settings: Settings) -> list[str]:
    """What is wrong with the ablations of a study that is right without them, a line for each error."""
    return [f"ablations.{name}{line}" for name in settings.ablations for line in _errors(settings, name)]


def _errors(settings: Settings, name: str) -> list[str]:
    if strangers := [stage for stage in settings.ablations[name].stages if stage not in settings.stages]:
        return [f".stages: {unknown(stage, 'stages', settings.stages)}" for stage in strangers]
    try:
        variant = varied(settings, name)
    except ValidationError as error:
        return [f".{line}" for line in error_lines(error)]
    return _wrong_references(variant) or list(_idle(settings, variant, name))


def _wrong_references(variant: Settings) -> list[str]:
    """What a variant's one schedule names that is not there, or not in an order that can be trained."""
    # Which schedules the leak study takes is settled by the study's own, and no part of an ablation.
    wrong = reference_errors(variant.model_dump(exclude={"evaluation"}))
    return [f".{line}".replace(".schedules: ", ": ", 1) for line in wrong]


def variant_errors(settings: Settings, ablation: Ablation) -> list[str]:
    """What is wrong with the settings that differences lead to, a line each that begins with the place."""
    try:
        return _wrong_references(applied(settings, ablation))
    except ValidationError as error:
        return [f".{line}" for line in error_lines(error)]


def _idle(settings: Settings, variant: Settings, name: str) -> Iterator[str]:
    """Differences that change nothing in what an ablation's schedule trains."""
    written = settings.ablations[name].model_dump(exclude_unset=True)
    [schedule] = variant.schedules
    label, stages = "-".join(schedule), [variant.stages[stage] for stage in schedule]
    if not any(written.get(section) for section in SECTIONS):
        only = " but the schedule, which belongs under schedules" if "schedule" in written else ""
        yield f": changes nothing{only}; name what differs from the base: {', '.join(SECTIONS)}"
    sees = all(stage.blind for stage in stages) and f"no stage of '{label}' sees an image"
    adapts = not any("lora" in stage.train for stage in stages) and f"no stage of '{label}' trains lora"
    same = "the base has these values"
    for role in written.get("models", ()):
        idle = getattr(variant.models, role) == getattr(settings.models, role) and same
        if idle := idle or (role == "vision_encoder" and sees):
            yield f".models.{role}: changes nothing: {idle}"
    for section, unused in (("connector", sees), ("lora", adapts)):
        idle = getattr(variant, section) == getattr(settings, section) and same
        if section in written and (idle := idle or unused):
            yield f".{section}: changes nothing: {idle}"
    for stage in written.get("stages", ()):
        before, after = settings.stages[stage], variant.stages[stage]
        if stage not in schedule:
            yield f".stages.{stage}: changes nothing: '{label}' has no stage {stage}"
        elif trained_as(after) == trained_as(before):
            yield f".stages.{stage}: changes nothing: {same}"
        elif after.regularisation.kind not in ("none", before.regularisation.kind) and not after.regularisation.active:
            yield f".stages.{stage}.regularisation: another kind needs its own weight"


def trained_as(stage: Stage) -> dict:
    """The settings of a stage, with a regularisation that has no effect as none."""
    return stage.model_dump() | ({} if stage.regularisation.active else {"regularisation": None})


def what_trains(settings: Settings, stage: str) -> str:
    """Write down all settings that the training of a stage depends on, beside its parent."""
    lora = settings.lora.model_dump() if "lora" in settings.stages[stage].train else None
    models = settings.models.model_dump()
    return canonical_json([trained_as(settings.stages[stage]), settings.connector.model_dump(), lora, models])
