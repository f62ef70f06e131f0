"""Names that settings had in version 0.1: accepted still, with a line that gives the new one."""

from collections.abc import Iterator, Mapping
from typing import Any

from triptych.config.base import Record
from triptych.config.datasets import Captions
from triptych.config.evaluation import Evaluation
from triptych.config.runtime import Runtime
from triptych.config.stages import Stage

# Where such settings stand, and the section whose fields say what they are called now; `*` is any name.
SECTIONS: dict[tuple[str, ...], type[Record]] = {
    ("datasets", "*"): Captions,
    ("stages", "*"): Stage,
    ("ablations", "*", "stages", "*"): Stage,
    ("runtime",): Runtime,
    ("evaluation",): Evaluation,
}

# Sections that took settings of another section: (former section, present one, its fields).
MOVED: list[tuple[str, str, type[Record]]] = [("training", "runtime", Runtime)]


def current_names(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Give former names of settings their names of today.

    Returns:
        The configuration with today's names; a line for each name that changed; an error for each setting that stands
        there under both names.
    """
    notes: list[str] = []
    errors: list[str] = []

    def renamed(value: Any, path: tuple[str, ...], places: list[tuple[tuple[str, ...], type[Record]]]) -> Any:
        if not isinstance(value, Mapping):
            return value
        former = dict(pair for place, section in places if not place for pair in _former(section))
        found: dict[Any, Any] = {}
        for key, inner in value.items():
            name = former.get(key, key)
            here = ".".join(path)
            if name != key and name in value:
                errors.append(f"{here}: {key} is the former name of {name}, which is also set; remove {key}")
                continue
            if name != key:
                notes.append(f"{here}.{key} is now called {name}; please rename it")
            deeper = [(place[1:], section) for place, section in places if place and place[0] in ("*", str(key))]
            found[name] = renamed(inner, (*path, str(key)), deeper)
        return found

    return renamed(_moved(config, notes, errors), (), list(SECTIONS.items())), notes, errors


def _moved(config: Mapping[str, Any], notes: list[str], errors: list[str]) -> Mapping[str, Any]:
    """Put settings that stood in another section where they stand today; adds to `notes` and `errors`."""
    for former, present, section in MOVED:
        stood, stands = config.get(former), config.get(present) or {}
        if not isinstance(stood, Mapping) or not isinstance(stands, Mapping):
            continue
        names = dict(_former(section)) | {name: name for name in section.model_fields}
        found = {names[key]: value for key, value in stood.items() if key in names}
        for key in (key for key in stood if key in names):
            line = f"{former}.{key} is now {present}.{names[key]}"
            if {key, names[key]} & stands.keys():
                errors.append(f"{line}, which is also set; remove {former}.{key}")
            else:
                notes.append(f"{line}; please move it")
        if found:
            rest = {key: value for key, value in stood.items() if key not in names}
            config = {**config, former: rest, present: {**found, **stands}}
    return config


def _former(section: type[Record]) -> Iterator[tuple[str, str]]:
    """Former and present names of a section's fields, where they differ."""
    return ((field.alias, name) for name, field in section.model_fields.items() if field.alias)
