"""What a check is given, and what it finds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.commands.cluster import read_profile
from triptych.config.study import Study

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        state: `ok`, `warning` or `fault`.
        found: what there is, in a line.
        remedy: what to do about it.
        rates: measured numbers that a plan can use, by name.
    """

    state: str
    found: str
    remedy: str = ""
    rates: dict[str, float] = field(default_factory=dict)


def ok(found: str, **rates: float) -> Finding:
    """All is well."""
    return Finding(OK, found, rates=rates)


def warning(found: str, remedy: str, **rates: float) -> Finding:
    """A study runs, but slower, with less, or with something that could not be found out."""
    return Finding(WARNING, found, remedy, rates)


def fault(found: str, remedy: str) -> Finding:
    """A study would fail, or its results would not be what its settings say."""
    return Finding(FAULT, found, remedy)


@dataclass(frozen=True)
class Place:
    """Where checks are made, and for what.

    Attributes:
        study: that is to run.
        profile: folder of Snakemake's options; None: this machine alone.
        partition: of the job in which the checks run; "" outside of jobs.
        gpus: that a job was to get; None where no job was asked for.
        folder: that all machines share, for files of the checks.
    """

    study: Study
    folder: Path
    profile: Path | None = None
    partition: str = ""
    gpus: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of the profile; none without one."""
        return read_profile(self.profile) if self.profile else {}

    @property
    def on_cluster(self) -> bool:
        """Whether the study's jobs run on a cluster."""
        return self.options.get("executor") == "slurm"
