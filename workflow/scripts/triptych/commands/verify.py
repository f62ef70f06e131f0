"""Compare all that a study has made with its hashes and checksums: `python -m triptych.commands.verify`.

    python -m triptych.commands.verify --configfile config/mine.yaml --delete

Snakemake looks at names and times of files, and does not see what a failing disk or a copy that was cut short has done
to one. Steps check what they read; this reads everything. With --delete, what is damaged is removed, and with it the
tables, figures and report, which have no hashes and are made of the rest; then Snakemake makes them again.
"""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from triptych.commands.resume import left_steps, other_snakemakes
from triptych.config.study import read_study
from triptych.data.check import block_error
from triptych.errors import TriptychError, run_step
from triptych.features.shards import require_whole
from triptych.io.manifest import read_json, require_files
from triptych.io.parquet import read_table

MANIFEST = "manifest.json"


Fault = tuple[str, list[Path]]  # what is wrong, and what to remove


def faults(results: Path, cache: Path) -> Iterator[Fault]:
    """What of a study is damaged, and what to remove so that it is made again.

    Args:
        results: folder of its results.
        cache: where the blocks of checked images are.
    """
    for path in sorted(results.glob(f"sources/*/{MANIFEST}")):
        yield from _fault(lambda path=path: _listed(path), [path.parent])
    for path in sorted(results.glob("data/*/shards/*.json")):
        yield from _fault(lambda path=path: read_json(path), [path])
    for block in sorted({block for path in results.glob("data/*/shards/*.json") for block in _blocks(path, cache)}):
        if block.exists() and (fault := block_error(block)):
            yield fault, [block]
    for path in sorted(results.glob(f"data/*/{MANIFEST}")):
        # Its folds are cut from these tables, but are files of their own.
        made = [path, *(path.with_name(name) for name in ("images", "shards", "questions.parquet", "rejects.parquet"))]
        yield from _fault(lambda path=path: _data_set(path), made)
    for path in sorted(results.glob("data/*/folds*.json")):
        yield from _fault(lambda path=path: _folds(path), [path, path.with_suffix(".parquet")])
    for path in sorted(results.glob("data/audit.json")):
        yield from _fault(lambda path=path: read_json(path), [path])
    for path in sorted(results.glob(f"models/*/{MANIFEST}")):
        yield from _fault(lambda path=path: _listed(path), [path.parent])
    for path in sorted(results.glob(f"features/*/{MANIFEST}")):
        yield from _features(path)
    for path in sorted(results.glob(f"checkpoints/*/*/*/{MANIFEST}")):
        yield from _fault(lambda path=path: _listed(path), [path.parent])
    for kind in ("predictions", "probes"):
        for path in sorted(results.glob(f"{kind}/**/*.parquet")):
            yield from _fault(lambda path=path: read_table(path), [path])


def _fault(check: Callable[[], object], remove: list[Path]) -> Iterator[Fault]:
    try:
        check()
    except (TriptychError, KeyError, TypeError, AttributeError) as error:
        named = error if isinstance(error, TriptychError) else f"{remove[0]}: is no record of Triptych"
        yield str(named).split(";")[0], remove


def _listed(path: Path) -> None:
    require_files(path.parent, read_json(path)["files"], "")


def _blocks(path: Path, cache: Path) -> list[Path]:
    """The blocks that a shard names; none where it is damaged, which is told elsewhere."""
    try:
        return [cache / "blocks" / key[:2] / f"{key}.parquet" for key in read_json(path)["blocks"].values()]
    except (TriptychError, KeyError, TypeError, AttributeError):
        return []


def _data_set(path: Path) -> None:
    manifest = read_json(path)
    files = {name: sha256 for name, sha256 in manifest["files"].items() if name != "images"}
    require_files(path.parent, files, "")
    for name in manifest["parts"]:
        part = path.parent / "images" / name
        if not part.is_file():
            raise TriptychError(f"{part}: missing, though {path} lists it")
        if fault := block_error(part, manifest["parts"][name]):
            raise TriptychError(fault)


def _folds(path: Path) -> None:
    table = path.with_suffix(".parquet")
    require_files(path.parent, {table.name: read_json(path)["sha256"]}, "")


def _features(path: Path) -> Iterator[Fault]:
    try:
        files = read_json(path)["files"]
    except TriptychError as fault:
        yield str(fault).split(";")[0], [path]
        return
    for name in files:
        shard = path.parent.parent / "shards" / name
        yield from _fault(lambda shard=shard: require_whole(shard, shard.stem), [shard, path])


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unhashed(results: Path) -> list[Path]:
    """Tables, figures and report: made in moments of what has hashes. Tables of the test part stay."""
    made = [path for kind in ("tables", "figures") for path in results.glob(f"{kind}/*") if path.is_file()]
    return [*made, results / "report.html"]


def main() -> None:
    """Compare everything that a study has made with its hashes; say what is damaged, a line each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--configfile", type=Path, default=Path("config/config.yaml"), help="the study's configuration")
    parser.add_argument("--delete", action="store_true", help="remove what is damaged, and all tables and figures")
    arguments = parser.parse_args()
    study = read_study(arguments.configfile)
    folder = Path.cwd()
    if arguments.delete and (other_snakemakes(folder) or left_steps(folder)):
        raise TriptychError(f"Snakemake or one of its steps runs in {folder}; let it end before anything is deleted")
    found = list(faults(study.results, Path(os.environ.get("TRIPTYCH_CACHE") or study.settings.cache)))
    for fault, _ in found:
        print(f"damaged: {fault}")
    if arguments.delete:
        for path in dict.fromkeys([*(path for _, paths in found for path in paths), *unhashed(study.results)]):
            remove(path)
        print(f"{len(found)} damaged, removed together with tables and figures; run Snakemake again")
    elif found:
        raise TriptychError(f"{len(found)} damaged; remove them with --delete, and run Snakemake again")
    else:
        print("nothing is damaged")


if __name__ == "__main__":
    run_step(main)
