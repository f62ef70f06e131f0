"""A configuration file as it is written: what YAML would drop or change without a word is found here."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from triptych.errors import TriptychError, message_of


def read_yaml(file: Path) -> tuple[Any, list[str]]:
    """Read a configuration file, which may be JSON, as Snakemake does.

    Returns:
        What it holds; a line for each fault of its writing: a key that stands twice, a number that YAML reads as
        another one.

    Raises:
        TriptychError: the file is missing, or is not YAML.
    """
    try:
        text = file.read_text(encoding="utf-8")
        try:
            found = json.loads(text)
            text = text.replace("\t", " ")  # between values, where JSON alone allows them: in texts it does not
        except ValueError:
            found = None
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return found, []
        faults = list(_faults(node, loader, "", {}))
        return (loader.construct_document(node) if found is None else found), faults
    except OSError as error:
        raise TriptychError(f"{file}: cannot be read ({error.strerror}); name a file in config/") from None
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
        raise TriptychError(f"{file}: not valid YAML, {place}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise TriptychError(f"{file}: not valid YAML: {message_of(error)}") from None
    except RecursionError:
        raise TriptychError(f"{file}: not a configuration: its values are nested too deep") from None


def with_types(config: Any, given: Any) -> Any:
    """Give back the types of what `--config` says, of which Snakemake reads lists and mappings as texts alone.

    Args:
        config: the configuration, with what `--config` says in it; beside a key 1 of a file, that of `--config` is '1'.
        given: what `--config` says; keys that have been taken out of `config` stay out.
    """
    if isinstance(given, Mapping):
        typed = dict(config if isinstance(config, Mapping) else given)
        for key in [key for key in given if key in typed]:
            twin = next((other for other in typed if other != key and str(other) == key), None)
            if twin is None:
                typed[key] = with_types(typed[key], given[key])
            else:
                typed[twin] = with_types(_merged(typed[twin], typed.pop(key)), given[key])
        return typed
    if isinstance(given, list):
        return [with_types(None, value) for value in given]
    try:
        return yaml.safe_load(given) if isinstance(given, str) else given
    except (yaml.YAMLError, RecursionError):
        return given


def _merged(config: Any, said: Any) -> Any:
    """What `--config` says over what a file says, as Snakemake does it for equal keys."""
    if not (isinstance(config, Mapping) and isinstance(said, Mapping)):
        return said
    return {**config, **{key: _merged(config.get(key), value) for key, value in said.items()}}


def _faults(node: yaml.Node, loader: yaml.SafeLoader, path: str, met: dict[yaml.Node, bool]) -> Iterator[str]:
    """Faults of a node and of those in it; `met` has the nodes before it, and whether they have been left."""
    if node in met:  # an alias of it
        if not met[node]:
            raise yaml.YAMLError(f"line {_line(node)}: the value of {path} holds itself")
        return
    met[node] = False
    if isinstance(node, yaml.ScalarNode):
        yield from _other_number(node, loader, path)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _faults(value, loader, _below(path, number), met)
    else:
        seen: dict[str, int] = {}
        for key, value in node.value:
            # As text, because 1 and '1' are one name. Merge keys add what is not written here, which may be written.
            name = key.value if isinstance(key, yaml.ScalarNode) and not _number(key) else None
            name = str(loader.construct_object(key, deep=True)) if name is None else name
            here = _below(path, name)
            if name in seen:
                yield f"{here}: stands there twice, in lines {seen[name]} and {_line(key)}; drop one"
            seen.setdefault(name, _line(key))
            yield from _other_number(key, loader, here)
            yield from _faults(value, loader, here, met)
    met[node] = True


def _other_number(node: yaml.Node, loader: yaml.SafeLoader, path: str) -> Iterator[str]:
    """A number whose digits YAML 1.1 takes for those of another: 010 is 8, 1:30 is 90."""
    if not _number(node):
        return
    digits = node.value.lstrip("+-").replace("_", "")
    if ":" in digits or (len(digits) > 1 and digits.isdigit() and digits.startswith("0")):
        text, value = node.value, loader.construct_object(node)
        yield f"{path}: line {_line(node)}: YAML reads {text} as {value}; write {value}, or '{text}' for a text"


def _number(node: yaml.Node) -> bool:
    return node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _below(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)
