"""A study from its configuration file, checked as a whole."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from triptych.config import ablations, grid
from triptych.config.errors import fault_lines, mapping, name_faults
from triptych.config.former_names import current_names
from triptych.config.paths import results_folder
from triptych.config.settings import Settings
from triptych.errors import TriptychError


def read_study(configfile: Path) -> tuple[Settings, Path]:
    """The settings in a configuration file, and the folder of the study's results, for commands run by hand.

    Raises:
        TriptychError: the file is missing, is not YAML, or says something wrong.
    """
    try:
        config = yaml.safe_load(configfile.read_text(encoding="utf-8"))
    except OSError as error:
        raise TriptychError(f"{configfile}: cannot be read ({error.strerror}); name a file in config/") from None
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
        raise TriptychError(f"{configfile}: not valid YAML, {place}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TriptychError(f"{configfile}: not valid YAML: {' '.join(str(error).split())}") from None
    settings = load_settings(mapping(config), configfile.name)
    return settings, results_folder(settings)


def load_settings(config: Mapping[str, Any], name: str = "config") -> Settings:
    """Check a whole configuration and give it as `Settings`.

    Raises:
        TriptychError: with one line for each fault, all at once; `name` heads them.
    """
    config, notes, lines = current_names(config)
    for note in notes:
        print(f"{name}: {note}", file=sys.stderr)
    settings = None
    try:
        settings = Settings.model_validate(config)
    except ValidationError as error:
        lines += fault_lines(error)
    lines += name_faults(config)
    if not lines:
        lines = ablations.faults(settings) or grid.faults(settings)
    if lines:
        raise TriptychError("\n".join(f"{name}: {line}" for line in lines))
    return settings


def settings_text(settings: Settings) -> str:
    """Settings as JSON, in the order of the file; `Settings.model_validate_json` makes them from it."""
    return settings.model_dump_json(exclude_unset=True)
