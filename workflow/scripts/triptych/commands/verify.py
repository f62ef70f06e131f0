"""Compare all that a study has made with its hashes and checksums: `triptych verify`.

    triptych verify --configfile config/mine.yaml --delete

Snakemake looks at names and times of files, and does not see what a failing disk or a copy that was cut short has done
to one, nor that one is gone of which tables were made already. Steps check what they read; this reads everything. With
--delete, what is damaged is removed, and with it the tables, figures and report, which have no hashes and are made of
the rest; then Snakemake makes them again.
"""

import argparse
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from triptych.commands.jobs import jobs
from triptych.commands.resume import left_steps, other_snakemakes
from triptych.config.paths import REPORT, RESULTS, STEPS
from triptych.config.study import Study, read_study
from triptych.config.texts import cache_folder
from triptych.data.check import block_error
from triptych.data.rejects import SUMMARY, causes_of
from triptych.errors import TriptychError, run_step
from triptych.features.shards import require_whole
from triptych.io.manifest import read_json, require_files
from triptych.io.parquet import read_table
from triptych.utils.arguments import add_configfile

Damage = tuple[str, list[Path]]  # what is wrong, and what to remove


def damages(results: Path, cache: Path) -> Iterator[Damage]:
    """Compare every result of `config.paths.STEPS` with its hashes, and say what to remove of a damaged one.

    Args:
        results: folder of a study's results.
        cache: folder of the blocks of checked images.
    """
    seen: set[Path] = set()
    for step in STEPS.values():
        for path in sorted(results.glob(re.sub(r"(\{\w+\})+", "*", step.output))):
            if path not in seen:
                seen.add(path)
                yield from CHECKS.get(step.rule, _sealed)(path, cache)


def missing(study: Study) -> Iterator[Damage]:
    """Name what a finished study no longer has: results whose steps have run, and of which its report was made."""
    if study.path(REPORT).exists():
        for job in jobs(study):
            for output in job.outputs if job.log.exists() else ():
                if not output.exists():
                    yield f"{output}: missing, though {job.log} says that it was made", []


def _sealed(path: Path, cache: Path) -> Iterator[Damage]:
    """Check a record or a table by itself."""
    yield from _damage(lambda: read_table(path) if path.suffix == ".parquet" else read_json(path), [path])


def _folder(path: Path, cache: Path) -> Iterator[Damage]:
    """Check a folder by the hashes in its manifest."""
    yield from _damage(lambda: require_files(path.parent, read_json(path)["files"], ""), [path.parent])


def _shard(path: Path, cache: Path) -> Iterator[Damage]:
    """Check a shard's record, and the blocks of checked images that it names."""
    yield from _sealed(path, cache)
    for block in sorted(_blocks(path, cache)):
        if block.exists() and (damage := block_error(block)):
            yield damage, [block]


def _prepared(path: Path, cache: Path) -> Iterator[Damage]:
    # Folds are cut from these tables, but are files of their own.
    names = ("images", "shards", "questions.parquet", "rejects.parquet", SUMMARY)
    made = [path, *(path.with_name(name) for name in names)]
    yield from _damage(lambda: _data_set(path), made)


def _damage(check: Callable[[], object], remove: list[Path]) -> Iterator[Damage]:
    try:
        check()
    except (TriptychError, KeyError, TypeError, AttributeError) as error:
        named = error if isinstance(error, TriptychError) else f"{remove[0]}: is not a record of Triptych"
        yield str(named).split(";")[0], remove


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
    causes_of(path.parent)
    for name in manifest["parts"]:
        part = path.parent / "images" / name
        if not part.is_file():
            raise TriptychError(f"{part}: missing, though {path} lists it")
        if fault := block_error(part, manifest["parts"][name]):
            raise TriptychError(fault)


def _folds(path: Path, cache: Path) -> Iterator[Damage]:
    """Check the folds' table by the hash in their record."""
    table = path.with_suffix(".parquet")
    hashes = lambda: {table.name: read_json(path)["sha256"]}  # noqa: E731
    yield from _damage(lambda: require_files(path.parent, hashes(), ""), [path, table])


def _features(path: Path, cache: Path) -> Iterator[Damage]:
    """Check the shards of features that a manifest names."""
    try:
        files = read_json(path)["files"]
    except TriptychError as error:
        yield str(error).split(";")[0], [path]
        return
    for name in files:
        shard = path.parent.parent / "shards" / name
        yield from _damage(lambda shard=shard: require_whole(shard, shard.stem), [shard, path])


# Rule -> how its results are checked, where that takes more than a look at the file itself.
CHECKS: dict[str, Callable[[Path, Path], Iterator[Damage]]] = {
    "fetch_dataset": _folder,
    "check_images": _shard,
    "prepare_dataset": _prepared,
    "make_folds": _folds,
    "prepare_model": _folder,
    "encode_images": _features,
    "encode_occluded": _features,
    "train_stage": _folder,
}


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unhashed(results: Path) -> list[Path]:
    """Tables, figures, report and its numbers: made in moments of what has hashes. Tables of the test part stay."""
    kinds = ("tables", "tables/transfer", "figures")
    made = [path for kind in kinds for path in results.glob(f"{kind}/*") if path.is_file()]
    return [*made, results / REPORT, results / RESULTS]


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych verify`."""
    parser = argparse.ArgumentParser(
        prog="triptych verify",
        description=main.__doc__,
        epilog="example: triptych verify --configfile config/mine.yaml",
    )
    add_configfile(parser)
    parser.add_argument(
        "--delete", action="store_true", help="delete damaged results, and all tables, figures and the report"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Verify all results of a study against their hashes, and print a line for each one that is damaged."""
    arguments = build_parser().parse_args(arguments)
    study = read_study(arguments.configfile)
    folder = Path.cwd()
    if arguments.delete and (other_snakemakes(folder) or left_steps(folder)):
        raise TriptychError(f"Snakemake or one of its steps runs in {folder}; let it end before anything is deleted")
    found = [*damages(study.results, cache_folder(study.settings.cache)), *missing(study)]
    for damage, _ in found:
        print(f"damaged: {damage}")
    if arguments.delete:
        for path in dict.fromkeys([*(path for _, paths in found for path in paths), *unhashed(study.results)]):
            remove(path)
        print(f"{len(found)} damaged; deleted, with tables, figures and report; run Snakemake again")
    elif found:
        raise TriptychError(f"{len(found)} damaged; delete them with --delete, and run Snakemake again")
    else:
        print("no result is damaged")


if __name__ == "__main__":
    run_step(main)
