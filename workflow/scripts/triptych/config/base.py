"""What the sections of a configuration share: the base class, names and values."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Part = Literal["connector", "lora", "language_model", "vision_encoder"]


LrSchedule = Literal["cosine", "linear", "constant"]


Switch = Literal["auto", "never", "always"]


Value = TypeVar("Value")


# One value for all parts, or one for each. The tags make a fault one line, which leaves out what is in brackets.
PerPart = Annotated[
    Annotated[Value, Tag("[for all]")] | Annotated[dict[Part, Value], Tag("[by part]")],
    Discriminator(lambda value: "[by part]" if isinstance(value, Mapping) else "[for all]"),
]


EXPONENT_FORM = r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"  # a number in YAML 1.2 and JSON, a text in YAML 1.1


class Record(BaseModel):
    """Base of all settings: unknown keys are errors, values have the type they say, and nothing changes once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _exponents_are_numbers(cls, values: Any) -> Any:
        """Read `1e-4` as the number that it is, which YAML 1.1 does of `1.0e-4` only; no other text is a number."""
        if not isinstance(values, Mapping):
            return values
        numbers = _numbers(cls)
        return {key: _number(value) if key in numbers else value for key, value in values.items()}


def _number(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _number(inner) for key, inner in value.items()}
    return float(value) if isinstance(value, str) and re.fullmatch(EXPONENT_FORM, value) else value


@cache
def _numbers(record: type[Record]) -> set[str]:
    """Names of the fields that are numbers, or hold numbers by name."""
    found = {name: field for name, field in record.model_fields.items() if _holds(field.annotation, float)}
    return {*found, *(field.alias for field in found.values() if field.alias)}


def _holds(annotation: Any, kind: type) -> bool:
    """Tell whether a type is `kind`, or is made of it, as float | None and dict[str, float] are of float."""
    return annotation is kind or any(_holds(part, kind) for part in get_args(annotation))


Precision = Literal["auto", "bf16", "fp32"]


def added(default: Any, **options: Any) -> Any:
    """Declare a field that came after studies had finished: at its default, it is left out of what is recorded."""
    return Field(default, exclude_if=lambda value: value == default, **options)


def former(name: str, default: Any, **options: Any) -> Any:
    """Declare a field that had another name in version 0.1, which is accepted still.

    What Snakemake records of a job is written with the former name (`model_dump(by_alias=True)`), so that finished
    studies of version 0.1 are recognised and nothing of them trains again.
    """
    return Field(default, alias=name, **options)
