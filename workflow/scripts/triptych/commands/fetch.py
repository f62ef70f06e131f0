"""Ask the hub for all that a study downloads from it, before anything is downloaded: `triptych fetch --check`.

    triptych fetch --check --configfile config/mine.yaml

Snakemake downloads (rules `fetch_dataset` and `prepare_model`). That a revision or file is not there, that a model asks
for its conditions to be accepted, or that the disk is too small, shows here within a minute.
"""

import argparse
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from triptych.commands.estimate import fetched_gb
from triptych.config.study import Study, read_study
from triptych.config.texts import cache_folder
from triptych.data.sources import source_module
from triptych.download.huggingface import (
    MODEL_FILES,
    HubFiles,
    file_size,
    has_weights,
    hub_folder,
    list_files,
    stored_file,
    without_weights,
)
from triptych.errors import TriptychError, run_step
from triptych.utils.arguments import add_configfile

REQUESTS = 8  # at a time, as in the hub's own client


class Found(NamedTuple):
    """What the hub says of a file.

    Attributes:
        files: what the study needs of the repository.
        name: of the file, or the pattern where none is known.
        size: in bytes, as far as it is downloaded; None where the hub does not say.
        stored: it is in the cache already.
        fault: why it cannot be downloaded.
    """

    files: HubFiles
    name: str
    size: int | None = None
    stored: bool = False
    fault: str = ""


def hub_files(study: Study) -> dict[HubFiles, list[str]]:
    """Give what a study needs of the hub, with the names of its models and data sets."""
    found: dict[HubFiles, list[str]] = {}
    for name, model in study.grid.models.items():
        if model.source == "hub":
            found.setdefault(HubFiles("model", model.repo, model.revision, MODEL_FILES), []).append(name)
    for name in study.grid.used_datasets:
        settings = study.datasets[name]
        if asked := getattr(source_module(settings), "hub_files", None):
            found.setdefault(asked(settings), []).append(name)
    return found


def in_part(study: Study) -> Counter[tuple[HubFiles, str]]:
    """Give the bytes that are fetched out of archives, by archive."""
    found: Counter[tuple[HubFiles, str]] = Counter()
    for name, size in fetched_gb(study).items():
        settings = study.datasets[name]
        found[source_module(settings).hub_files(settings), settings.archive] += round(size * 1e9)
    return found


def ask_hub(files: HubFiles, cache: Path) -> list[Found]:
    """Ask the hub for the files of one repository: for the list, if only patterns are known, and for each by HEAD."""
    try:
        names = list_files(files, cache) if any("*" in pattern for pattern in files.patterns) else files.patterns
        if not names:
            raise TriptychError(f"{files.repo}: no file matches {', '.join(files.patterns)} at {files.revision}")
        if files.kind == "model" and not has_weights(names):
            raise TriptychError(without_weights(files, cache))
    except TriptychError as error:
        return [Found(files, ", ".join(files.patterns), fault=str(error))]

    def ask_for(name: str) -> Found:
        if path := stored_file(files.repo, name, files.revision, cache, files.kind):
            return Found(files, name, path.stat().st_size, stored=True)
        try:
            return Found(files, name, file_size(files, name))
        except TriptychError as error:
            return Found(files, name, fault=str(error))

    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(ask_for, names))


def lines(found: Sequence[Found], names: dict[HubFiles, list[str]]) -> Iterator[str]:
    """The table of all files, each repository under a line of its own."""
    wide = max(len(one.name) for one in found) + 2
    for files in dict.fromkeys(one.files for one in found):
        yield f"{', '.join(names[files])}: {files.kind} {files.repo} at {files.revision}"
        for one in found:
            if one.files == files:
                size = "" if one.size is None else _amount(one.size)
                yield f"  {one.name:<{wide}}{size:>10}  {'FAULT' if one.fault else 'stored' if one.stored else 'ok'}"


def _amount(size: int) -> str:
    """A number of bytes: 27.4 GB, 181.0 MB, 617 B."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych fetch`."""
    parser = argparse.ArgumentParser(
        prog="triptych fetch",
        description=main.__doc__,
        epilog="example: triptych fetch --check --configfile config/mine.yaml",
    )
    add_configfile(parser)
    parser.add_argument(
        "--check", action="store_true", required=True, help="ask only; Snakemake downloads, or `make aire-fetch`"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask the hub for every file that a study downloads from it; nothing is downloaded."""
    study = read_study(build_parser().parse_args(arguments).configfile)
    cache = cache_folder(study.settings.cache)
    names = hub_files(study)
    if not names:
        print("nothing of this study comes from the hub")
        return
    found, parts = [one for files in names for one in ask_hub(files, cache)], in_part(study)
    for index, one in enumerate(found):
        part = parts[one.files, one.name]
        if not one.stored and 0 < part < (one.size or 0):
            print(f"{one.name}: of {_amount(one.size)}, only the images that are needed are fetched")
            found[index] = one._replace(size=part)
    print("\n".join(lines(found, names)))
    faults = list(dict.fromkeys(one.fault for one in found if one.fault))
    missing = [one for one in found if not one.stored and one.size is not None]
    needed = sum(one.size for one in missing)
    folder = hub_folder(cache).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    print(f"to download: {_amount(needed)} in {len(missing)} files; {_amount(free)} free in {folder}")
    if needed > free:
        faults.append(f"{folder}: {_amount(needed - free)} too little space; set HF_HOME to a folder on a larger disk")
    if faults:
        raise TriptychError("\n".join((f"{len(faults)} fault{'s' if len(faults) > 1 else ''}", *faults)))


if __name__ == "__main__":
    run_step(main)
