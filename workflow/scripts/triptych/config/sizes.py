"""Sizes of data sets with captions: each is a data set of its own."""

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

ALL = "all"  # the size of a data set that takes every usable image


def _size(value: Any) -> Any:
    if value != ALL and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"must be a whole number, or {ALL}")
    if value != ALL and value < 1:
        raise ValueError(f"must be greater than 0, not {value}")
    return value


_SIZE_SCHEMA = {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"const": ALL}]}
Size = Annotated[Any, PlainValidator(_size), WithJsonSchema(_SIZE_SCHEMA)]


def expanded_names(base: str, sizes: Any) -> list[tuple[str, int | None]]:
    """A data set's name with each of its sizes, or the name alone where it has none."""
    sizes = [sizes] if isinstance(sizes, int) or sizes == ALL else sizes  # one number: an error, reported elsewhere
    return [(f"{base}-{size}", size) for size in sizes] if isinstance(sizes, list) else [(base, None)]
