"""The page of all settings, `docs/configuration.md`, from the settings models: it can say nothing else than they."""

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel
from triptych.config.datasets import SOURCES, Captions, Images, Vqa
from triptych.config.models import LlavaModels, Models
from triptych.config.settings import Settings
from triptych.errors import run_step
from triptych.io.atomic import write_text

INTRODUCTION = """\
# Configuration

All settings of a study, generated from the code by `make schema`. A study is a YAML file, passed with `--configfile`;
start from a copy of `config/config.yaml`. Editors that read `config/schema.json` show the same texts as you type. A
setting that is omitted has its default; a key that is not listed here is an error. You choose the names of stages and
data sets. [What runs again](architecture.md#what-runs-again) lists the effect of changing a setting.

Never put an API key or password into a configuration; log in with `wandb login` or `hf auth login`, or set
`WANDB_API_KEY` or `HF_TOKEN`.
"""


SHARED = (
    (Images, "All data sets:"),
    (Captions, "All data sets with captions:"),
    (Vqa, "All data sets in SLAKE's layout:"),
)


def reference() -> str:
    """The page as Markdown."""
    return "\n".join([INTRODUCTION, *_study(), *_models(), *_datasets(), *_sections()]).rstrip() + "\n"


def _study() -> Iterator[str]:
    yield "## The study\n"
    yield from _table(Settings, list(Settings.model_fields))


def _models() -> Iterator[str]:
    for role, field in {**Models.model_fields, **LlavaModels.model_fields}.items():
        yield f"## `models.{role}`\n"
        yield from _by_source(get_args(field.annotation), ())


def _datasets() -> Iterator[str]:
    yield "## `datasets.<name>`\n"
    shared: set[str] = set()
    for model, heading in SHARED:
        yield f"{heading}\n"
        yield from _table(model, [key for key in model.model_fields if key not in shared])
        shared |= set(model.model_fields)
    yield from _by_source(SOURCES.values(), shared)


def _sections(model: type[BaseModel] = Settings, place: str = "") -> Iterator[str]:
    """A section for each setting that is a record of settings, or records by name, and for those in it."""
    for key, field in model.model_fields.items():
        kind, heading = field.annotation, f"{place}{key}"
        if get_origin(kind) is dict:
            kind, heading = get_args(kind)[1], f"{heading}.<name>"
        kind = next((part for part in get_args(kind) if part is not type(None)), kind)  # may be null
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)) or kind in (Models, Images):
            continue
        yield f"## `{heading}`\n"
        yield f"{_words(kind)}\n"
        yield from _table(kind, list(kind.model_fields))
        yield from _sections(kind, f"{heading}.")


def _by_source(models: Iterable[type[BaseModel]], shared: object) -> Iterator[str]:
    for model in models:
        [source] = get_args(model.model_fields["source"].annotation)
        yield f"### `source: {source}`\n"
        yield f"{_words(model)}\n"
        own = [key for key in model.model_fields if key != "source" and key not in shared]
        if own:
            yield from _table(model, own)


def _words(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _table(model: type[BaseModel], keys: list[str]) -> Iterator[str]:
    schema = model.model_json_schema(by_alias=False)
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        node, field = schema["properties"][key], model.model_fields[key]
        kind, meaning = _kind(node, schema), node.get("description") or _linked(node, schema).get("description", "")
        default = "**required**" if field.is_required() else _default(node)
        yield f"| `{key}` | {_cell(kind)} | {default} | {_cell(' '.join(meaning.split()))} |"
    yield ""


def _cell(text: str) -> str:
    """Text that stays itself in a table: outside of code, `<image>` would be taken for HTML."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if index % 2 else re.sub(r"<(?=\w)", "&lt;", part) for index, part in enumerate(parts))


def _default(node: Mapping) -> str:
    value = node.get("default")
    return "as listed below" if isinstance(value, dict) and value else f"`{json.dumps(value, ensure_ascii=False)}`"


def _linked(node: Mapping, schema: Mapping) -> Mapping:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _kind(node: Mapping, schema: Mapping) -> str:
    """The values that a JSON schema allows, in words."""
    if "$ref" in node or "discriminator" in node:
        return "see below"
    choices = node.get("anyOf") or node.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(_kind(choice, schema) for choice in choices))
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    match node.get("type"):
        case "array" if "prefixItems" in node:
            return "list: " + ", ".join(_kind(item, schema) for item in node["prefixItems"])
        case "array":
            items = _kind(node["items"], schema)
            return f"list of {items.replace('list:', 'lists:')}" if items.startswith("list:") else f"list: {items}"
        case "object" if node["additionalProperties"] is True:
            return "keys with values"
        case "object":
            values = node["additionalProperties"]
            below = "$ref" in values or "discriminator" in values
            names = ", ".join(f"`{name}`" for name in node.get("propertyNames", {}).get("enum", []))
            return "by name, see below" if below else f"by {names or 'name'}: {_kind(values, schema)}"
        case "integer" | "number" as kind:
            signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
            bounds = [f"{sign} {node[name]}" for name, sign in signs.items() if name in node]
            bounds += [f"a multiple of {node['multipleOf']}"] if "multipleOf" in node else []
            return " ".join(["whole number" if kind == "integer" else "number", ", ".join(bounds)]).strip()
        case "string":
            return "text"
        case kind:
            return {"boolean": "`true`, `false`", "null": "`null`"}[kind]


def main() -> None:
    """Write the page of all settings."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path, help="file to write")
    write_text(parser.parse_args().file, reference())


if __name__ == "__main__":
    run_step(main)
