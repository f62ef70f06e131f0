"""What a study measured of one checkpoint, in the form in which the hub's model cards state it (`model-index`)."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult

from triptych.config.arms import HELD_OUT, TEST
from triptych.config.grid import SHARED, folds_name
from triptych.data.sources.slake_hub import SLAKE
from triptych.errors import TriptychError
from triptych.evaluate.answered import record_path
from triptych.io.manifest import read_json, sha256_file
from triptych.io.parquet import read_table
from triptych.model import checkpoint
from triptych.tables.runs import accuracy
from triptych.train.history import METRICS, read_metrics

TASK = "visual-question-answering"


def measured(manifest: dict, source: Path, data: Sequence[Path], predictions: Sequence[Path]) -> list[EvalResult]:
    """List results of a checkpoint: of its validation in training, then of its answers.

    Args:
        manifest: the checkpoint's.
        source: folder of the checkpoint.
        data: folders of data sets that it was trained on.
        predictions: files of its answers.

    Raises:
        TriptychError: a file holds the answers of another checkpoint, to other data or to a control, or is damaged.
    """
    answered = [_answered(path, manifest, source, data) for path in dict.fromkeys(predictions)]
    return [*_validation(manifest, source, data), *answered]


def hub_id(settings: dict) -> str | None:
    """Give the id of a data set on the hub, from the settings in its manifest; None where it is from elsewhere."""
    return SLAKE if settings["source"] == "slake-hub" else settings.get("repo")


def _validation(manifest: dict, source: Path, data: Sequence[Path]) -> list[EvalResult]:
    """Give the validation of the epoch whose weights were kept; nothing after training on captions alone."""
    [last] = manifest["stages"][-1].values()
    kept = [row for row in read_metrics(source / METRICS) if row["epoch"] == manifest.get("epoch")]
    if manifest["split"].startswith(SHARED) or not kept or not kept[0]["validation_samples"]:
        return []
    folder = next((path for path in data if path.name == last["data"]), None)
    part = f"validation part of {manifest['split']}"
    if last.get("select") == "best":
        part += ", by which the epoch was chosen"
    value, samples = 100 * kept[0]["validation_accuracy"], kept[0]["validation_samples"]
    return [_result(last["data"], folder, part, ("accuracy", "answers reproduced exactly, per cent"), value, samples)]


def _answered(path: Path, manifest: dict, source: Path, data: Sequence[Path]) -> EvalResult:
    """Give the exact match of a file of answers, as the study's tables compute it."""
    if not path.is_file():
        raise TriptychError(f"--predictions {path}: no such file; name a file of answers (seed0.parquet)")
    if not record_path(path).is_file():
        raise TriptychError(
            f"--predictions {path}: {record_path(path).name}, which says whose answers these are, is not beside it; "
            "run the study with --forcerun predict"
        )
    record = read_json(record_path(path))
    if record["sha256"] != sha256_file(path):
        raise TriptychError(f"--predictions {path}: differs from its record; delete it and run the study again")
    if record["inputs"]["checkpoint"] != sha256_file(source / checkpoint.MANIFEST):
        raise TriptychError(f"--predictions {path}: are the answers of another checkpoint than {source}")
    folds = f"{folds_name(manifest['split'])}.json"
    hashes = {folder: sha256_file(folder / folds) for folder in data if (folder / folds).is_file()}
    folder = next((folder for folder, found in hashes.items() if found == record["inputs"]["data"]), None)
    if folder is None:
        raise TriptychError(
            f"--predictions {path}: its questions are not those of a data set with folds that --data names; add the "
            "folder of that data set"
        )
    rows = read_table(path)
    view = rows[0]["view"] if rows else "none"
    official = read_json(folder / folds)["settings"]["group"] == "official"
    parts = {
        HELD_OUT: "the source's own validation part" if official else f"held-out part of {manifest['split']}",
        TEST: "the source's own test part",
    }
    if view not in parts:
        raise TriptychError(
            f"--predictions {path}: are answers of the view '{view}', and no result; name those to the held-out "
            "questions (seed0.parquet) or to the source's test part (seed0-test.parquet)"
        )
    return _result(
        folder.name, folder, parts[view], ("exact_match", "exact match, per cent"), accuracy(rows), len(rows)
    )


def _result(
    name: str, folder: Path | None, part: str, metric: tuple[str, str], value: float, questions: int
) -> EvalResult:
    """Give a result.

    Args:
        name: of the data set in the study.
        folder: of the data set, where it is known.
        part: of the data set, in words.
        metric: the hub's id, and in words.
        value: in per cent.
        questions: how many it is of.
    """
    settings = read_json(folder / checkpoint.MANIFEST)["settings"] if folder else {"source": ""}
    repo = hub_id(settings)
    return EvalResult(
        task_type=TASK,
        dataset_type=repo or name,
        dataset_name=name,
        dataset_split=part,
        dataset_revision=settings.get("revision") if repo else None,
        dataset_args={"questions": questions},
        metric_type=metric[0],
        metric_name=metric[1],
        metric_value=round(value, 2),
    )
