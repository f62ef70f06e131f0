"""Hashes, and the manifests (JSON) that hold them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.errors import TriptychError
from triptych.io.atomic import write_text
from triptych.io.text import parse_json

SEAL = "seal"  # key of a manifest's own hash


def sha256_bytes(data: bytes) -> str:
    """Compute the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Write JSON with sorted keys and no spaces: equal values give equal text, whatever order they were written in."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_json(value: Any) -> str:
    """Compute the SHA-256 of a JSON value, independent of key order."""
    return sha256_bytes(canonical_json(value).encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys atomically: equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_record(path: Path, value: dict) -> None:
    """Write a JSON object as `write_json` does, with a hash of the rest under `seal`, which `read_json` checks."""
    value = json.loads(json.dumps(value))  # keys as they will be read
    write_json(path, {**value, SEAL: sha256_json(value)})


def read_json(path: Path) -> Any:
    """Read JSON that a step wrote; of `write_record`, the value that was given to it, after a check of its hash.

    Raises:
        TriptychError: the file is missing, is not JSON, or has changed since `write_record` wrote it.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TriptychError(f"{path}: no such file; the step that writes it has not run") from None
    except ValueError as error:  # neither UTF-8 nor JSON
        raise TriptychError(f"{path}: not valid JSON ({error}); restore it, or delete it and run again") from None
    if isinstance(value, dict) and (seal := value.pop(SEAL, None)) and seal != sha256_json(value):
        raise TriptychError(f"{path}: damaged or edited: it differs from its seal; delete it and run again")
    return value


def require_files(folder: Path, files: Mapping[str, str], remedy: str) -> None:
    """Compare files below `folder` with their sha256, by name.

    Raises:
        TriptychError: one is missing or has changed; it ends with `remedy`, what to do about it.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise TriptychError(f"{path}: missing, though manifest.json lists it; {remedy}")
        if sha256_file(path) != expected:
            raise TriptychError(f"{path}: differs from the hash in manifest.json; {remedy}")
