"""Names of classes that the hub's `datasets` library stores as numbers in a column, beside the table."""

import json

import pyarrow as pa


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Give the names of the classes of every column of classes (`ClassLabel`), in the order of their numbers.

    Empty where the table says nothing of classes, or says it in a way that is not known.
    """
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {name: one for name, one in features.items() if one.get("_type") == "ClassLabel"}
        return {name: list(map(str, one["names"])) for name, one in labels.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
