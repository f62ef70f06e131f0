"""Types of command-line arguments that several steps share."""

from pathlib import Path


def folder(text: str) -> Path:
    """Give the folder of a step's input or output, which rules name by a file in it: its manifest, or its folds."""
    path = Path(text)
    return path.parent if path.name == "manifest.json" or path.is_file() else path
