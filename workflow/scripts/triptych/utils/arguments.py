"""Command-line arguments that several steps or commands share."""

import argparse
from pathlib import Path


def folder(text: str) -> Path:
    """Parse the folder of a step's input or output; rules name it by a file in it, such as its manifest."""
    path = Path(text)
    return path.parent if path.name == "manifest.json" or path.is_file() else path


def add_configfile(parser: argparse._ActionsContainer) -> None:
    """Add the option that names a study's configuration to a command line."""
    parser.add_argument("--configfile", type=Path, default=Path("config/config.yaml"), help="the study's configuration")
