"""What the sections of a configuration share: the base class, names and values."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

Part = Literal["connector", "lora"]


LrSchedule = Literal["cosine", "linear", "constant"]


Switch = Literal["auto", "never", "always"]


# Numbers are allowed as names because YAML reads `1:` as one.
Name = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]


FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9.+-]*$"  # names become folder names; `_` is left out to keep them unlike rules


Value = TypeVar("Value")


# One value for all parts, or one for each. The tags make a fault one line, which leaves out what is in brackets.
PerPart = Annotated[
    Annotated[Value, Tag("[for all]")] | Annotated[dict[Part, Value], Tag("[by part]")],
    Discriminator(lambda value: "[by part]" if isinstance(value, Mapping) else "[for all]"),
]


Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="Full commit id on the hub.")]


class Record(BaseModel):
    """Base of all settings: unknown keys are errors, and a loaded study cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


Precision = Literal["auto", "bf16", "fp32"]


def former(name: str, default: Any, **options: Any) -> Any:
    """Declare a field that had another name in version 0.1, which is accepted still.

    What Snakemake records of a job is written with the former name (`model_dump(by_alias=True)`), so that finished
    studies of version 0.1 are recognised and nothing of them trains again.
    """
    return Field(default, alias=name, **options)
