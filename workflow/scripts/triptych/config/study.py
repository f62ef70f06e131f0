"""A study from its configuration file, checked as a whole."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from triptych.config import ablations, sweeps
from triptych.config.datasets import Dataset
from triptych.config.environment import overruled
from triptych.config.errors import error_lines, mapping, reference_errors
from triptych.config.former_names import current_names
from triptych.config.grid import Checkpoint, Grid
from triptych.config.paths import CHECKPOINT_FOLDER, below
from triptych.config.settings import Settings
from triptych.config.texts import visible
from triptych.config.yaml_file import read_yaml
from triptych.errors import TriptychError
from triptych.io.text import kind_of


@dataclass(frozen=True)
class Study:
    """A checked configuration with its grid and its results folder.

    Attributes:
        settings: the configuration.
        grid: all trainings.
        results: folder of the results.
    """

    settings: Settings
    grid: Grid
    results: Path

    @classmethod
    def of(cls, settings: Settings) -> "Study":
        """Lay out a study."""
        return cls(settings, Grid(settings), Path(settings.pathvars.get("results", "results")))

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """Data sets by the names that stages use."""
        return self.settings.expanded_datasets()

    def path(self, pattern: str, **values: object) -> Path:
        """Give the path of one result; `pattern` is one of `config.paths`."""
        return below(self.results, pattern, **values)

    def checkpoint(self, cell: Checkpoint, pattern: str = CHECKPOINT_FOLDER) -> Path:
        """Give the folder of a checkpoint, or another path of it."""
        return self.path(pattern, **vars(cell))

    def transfer_errors(self) -> Iterator[str]:
        """Say what is wrong with `evaluation.datasets`, whose names are known, a line for each error."""
        for name, part in self.settings.evaluation.datasets.items():
            stages = [self.grid.last_stage(one) for one in self.grid.prefixes if self.grid.stage_of(one).data == name]
            if stages:
                yield f"evaluation.datasets: '{name}' is what stage {stages[0]} trains on; name data that no stage uses"
            if not self.datasets[name].has_part(part):
                yield f"evaluation.datasets.{name}: the data set has no part '{part}'; see its key `parts`"

    def text(self) -> str:
        """Write the settings as JSON, in the order of the file; `Settings.model_validate_json` reads it."""
        return self.settings.model_dump_json(exclude_unset=True)


def read_study(configfile: Path) -> Study:
    """Read the study of a configuration file, for commands run by hand.

    Raises:
        TriptychError: the file is missing, is not YAML, or says something wrong.
    """
    config, faults = read_yaml(configfile)
    if config is not None and not isinstance(config, Mapping):
        raise TriptychError(f"{configfile.name}: must hold settings, such as `seeds: [0]`, not {kind_of(config)}")
    return load_study(mapping(config), configfile.name, [f"{configfile.name}: {fault}" for fault in faults])


def load_study(config: Mapping[str, Any], name: str = "config", written: Sequence[str] = ()) -> Study:
    """Check a whole configuration and lay out its study.

    Args:
        config: what the files say.
        name: what heads errors and notes.
        written: errors in the writing of the files, which `read_yaml` finds, with the name of the file.

    Raises:
        TriptychError: with one line for each error, all at once.
    """
    config, notes, lines = current_names(config)
    for note in notes:
        print(f"{name}: {note}", file=sys.stderr)
    study = None
    try:
        settings = Settings.model_validate(config)
    except ValidationError as error:
        lines += error_lines(error)
    lines += reference_errors(config)
    if not lines:
        lines = [*ablations.errors(settings), *sweeps.errors(settings)]
    if not lines:
        study = Study.of(settings)
        lines = [*study.grid.errors, *study.transfer_errors()]
    if study is None or lines or written:
        raise TriptychError("\n".join(visible(line) for line in (*written, *(f"{name}: {line}" for line in lines))))
    for note in overruled(config, settings):
        print(f"{name}: {note}", file=sys.stderr)
    return study
