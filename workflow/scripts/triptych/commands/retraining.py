"""Before finished trainings are made again: which, and why. Every Snakemake reads this, so it imports little."""

import json
import re
from collections.abc import Sequence

from triptych.config.grid import Checkpoint
from triptych.config.jobs import TrainingJob
from triptych.config.paths import CHECKPOINT
from triptych.config.study import Study
from triptych.errors import TriptychError
from triptych.io.manifest import read_json

PARAMS = re.compile(r"before: '(\{.*\})' now: '(\{.*\})'", re.DOTALL)


def short_reason(reason: str) -> str:
    """Snakemake's reason for a job in a few words; of changed settings, which, from what to what."""
    if found := PARAMS.search(reason):
        return "; ".join(changes(*(json.loads(text) for text in found.groups())))
    if "Input files updated by another job" in reason:
        return "its inputs are made again"
    return " ".join(reason.split())


def other_settings(study: Study, cell: Checkpoint) -> list[str]:
    """Say in which settings a finished training, by its manifest, differs from the study's."""
    job, manifest = TrainingJob.of(study, cell), read_json(study.checkpoint(cell, CHECKPOINT))
    asked = {"stage": job.stage.model_dump(by_alias=True, mode="json"), "connector": job.connector.model_dump()}
    made = {"stage": manifest["stages"][-1].get(job.stage_name, {}), "connector": manifest["connector"]}
    if job.lora:
        asked, made = asked | {"lora": job.lora.model_dump()}, made | {"lora": manifest["lora"] or {}}
    return changes(made, asked)


def changes(before: dict, now: dict) -> list[str]:
    """Say which settings differ, each with its value before and now."""
    before, now = _flat(before), _flat(now)
    return [
        f"{name} {before.get(name)} -> {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _flat(value: dict, before: str = "") -> dict[str, object]:
    found = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{before}{name}.") if isinstance(inner, dict) else {f"{before}{name}": inner}
    return found


def refuse_to_retrain(again: Sequence[tuple[str, str]], at_most: int) -> None:
    """Stop a run that would make too many finished trainings again.

    Args:
        again: finished trainings that it would make again, and Snakemake's reasons.
        at_most: so many are no error.

    Raises:
        TriptychError: there are more; it lists them.
    """
    if len(again) > at_most:
        listed = "\n  ".join(f"{name}: {short_reason(reason)}" for name, reason in again)
        raise TriptychError(
            f"{len(again)} finished training jobs would run again (runtime.retrain_at_most: {at_most}):\n"
            f"  {listed}\nTo confirm this, add: --config yes_retrain=true. Otherwise undo the change, or give "
            "the study another results folder (pathvars.results)"
        )
