"""Start a study in a folder of its own: `triptych new`."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from triptych.commands.checkout import ROOT
from triptych.config.study import read_study
from triptych.errors import TriptychError, run_step
from triptych.io.atomic import write_text

STUDY = "study.yaml"
RESULTS = re.compile(r"^(pathvars:\s*(?:#.*)?(?:\n\s+|\s*\{\s*)results:\s*)[^\s}#]+(?: *#.*)?", re.MULTILINE)
SCHEMA = re.compile(r"^(# yaml-language-server: \$schema=).*$", re.MULTILINE)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych new`."""
    parser = argparse.ArgumentParser(
        prog="triptych new",
        description=main.__doc__,
        epilog="example: triptych new ~/studies/rank --from config/slake-cpu.yaml",
    )
    parser.add_argument("folder", type=Path, help="folder to make; the study's results and cache will be in it")
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        default=ROOT / "config/config.yaml",
        metavar="CONFIGFILE",
        help="the configuration to start from (default: Triptych's config/config.yaml, the full study)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Start a study: a folder with a copy of a configuration, its comments kept, whose results stay in that folder."""
    arguments = build_parser().parse_args(arguments)
    read_study(arguments.start)
    text = arguments.start.read_text(encoding="utf-8")
    text = RESULTS.sub(r"\g<1>results", text)
    text = SCHEMA.sub(lambda found: f"{found[1]}{ROOT / 'config/schema.json'}", text)
    target = arguments.folder / STUDY
    if arguments.folder.exists() and any(arguments.folder.iterdir()):
        raise TriptychError(f"{arguments.folder}: is there already, and is not empty; name a new folder")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    if read_study(target).results != Path("results"):
        raise TriptychError(f"{target}: set `pathvars: {{results: results}}` by hand; the line could not be found")
    print(f"{target}: written, from {arguments.start}. Edit it, then:\n")
    print(f"  cd {arguments.folder}\n  triptych plan --configfile {STUDY}\n  triptych run --configfile {STUDY}")


if __name__ == "__main__":
    run_step(main)
