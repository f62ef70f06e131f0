"""Types of command-line arguments that several steps share."""

from pathlib import Path


def folder(text: str) -> Path:
    """Parse the folder of a step's input or output; rules name it by a file in it, such as its manifest."""
    path = Path(text)
    return path.parent if path.name == "manifest.json" or path.is_file() else path
