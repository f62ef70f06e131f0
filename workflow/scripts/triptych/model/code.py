"""Code in a model's folder: none is ever run, and a folder that names some is refused."""

from collections.abc import Iterator
from pathlib import Path

from triptych.errors import TriptychError
from triptych.io.text import read_json_file

CODE = "auto_map"  # key under which transformers looks for modules of the folder, or of another repository
ATTENTION = ("attn_implementation", "_attn_implementation")  # "owner/name" is a kernel to fetch and run


def refuse_code(folder: Path) -> None:
    """Refuse a model whose JSON files name code that transformers would import.

    Raises:
        TriptychError: a file names code, or is not JSON.
    """
    for path in sorted(folder.glob("*.json")):
        for record in _records(read_json_file(path, "fetch or save the model again")):
            kernels = [record[key] for key in ATTENTION if "/" in str(record.get(key, ""))]
            if isinstance(record.get(CODE), dict | list | str):
                found = f"{CODE} names code of the model's own"
            elif kernels:
                found = f"attn_implementation names code of a repository, {kernels[0]}"
            else:
                continue
            raise TriptychError(
                f"{path}: {found}, and Triptych runs no code out of a model; choose a model that transformers has "
                "itself, or, where it has this one, remove the key from a copy of the folder"
            )


def _records(value: object) -> Iterator[dict]:
    """Give all objects of a JSON value, at any depth."""
    open_values = [value]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            yield value
        if isinstance(value, dict | list):
            open_values += value.values() if isinstance(value, dict) else value
