"""Step: the trainings of a study as runs of Weights & Biases, one for each checkpoint.

Runs are made from the `metrics.jsonl` of a training alone: they can be made again at any time, a resumed training never
leaves a run in pieces, and trainings need neither this package nor the internet.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from triptych.config.grid import Checkpoint
from triptych.config.jobs import WandbJob
from triptych.config.paths import WANDB
from triptych.config.settings import WeightsAndBiases
from triptych.config.study import read_study
from triptych.errors import TriptychError, run_step
from triptych.io.manifest import read_json, sha256_json, write_json
from triptych.train.history import Training, read_training

# Names of metrics in the charts of the original study; other metrics keep their own.
NAMES = {
    "train_loss": "training_loss",
    "train_accuracy": "training_acc",
    "validation_loss": "validate_loss",
    "validation_accuracy": "validate_acc",
}

MINUTES = 30  # limit of an upload: without an answer, `wandb sync` retries for ever
LONGEST_GROUP, LONGEST_TAG = 128, 64  # limits of W&B, which it reports of some only when a run is uploaded
WRITTEN = "triptych.json"  # in a run's folder: hash of the content, to tell whether it must be written again


def describe(training: Training, schedules: Mapping[str, Sequence[str]]) -> dict:
    """Describe a run: id, name, group, job type, tags, config, and a row of metrics for each epoch."""
    manifest = training.manifest
    stages = [next(iter(stage)) for stage in manifest["stages"]]
    cell = training.cell
    through = [schedule for schedule, prefixes in schedules.items() if cell.prefix in prefixes]
    return {
        "id": training.identity,
        "name": f"{cell.prefix} {cell.split} seed{cell.seed}",
        "group": group_name(through, cell),
        "job_type": f"stage {stages[-1]}"[:LONGEST_TAG],
        "tags": list(dict.fromkeys(tag[:LONGEST_TAG] for tag in (*through, cell.split, f"stage {stages[-1]}"))),
        "config": {
            **{name: manifest[name] for name in ("prefix", "split", "seed", "blind", "connector", "lora", "precision")},
            "schedules": through,
            "stage": stages[-1],
            "settings": manifest["stages"][-1][stages[-1]],
            "samples": manifest["samples"],
            "parent": manifest["parent"],
            "finished": training.finished,
        },
        "rows": [
            {NAMES.get(name, name): value for name, value in row.items() if value is not None} for row in training.rows
        ],
    }


def group_name(schedules: Sequence[str], cell: Checkpoint) -> str:
    """Name the group of a run: the schedules of the checkpoint and its split; its prefix if these are too many."""
    name = f"{', '.join(schedules) or cell.prefix} {cell.split}"
    return name if len(name) <= LONGEST_GROUP else f"{cell.prefix[: LONGEST_GROUP // 2]} {cell.split}"


def write_run(run: dict, where: WeightsAndBiases, out: Path, temporary: Path) -> Path:
    """Write one run into `out` in place of an earlier one with its id, and give its folder.

    A run whose content has not changed is left alone, with its mark of having been uploaded.
    """
    hashed = sha256_json({**run, "project": where.project, "entity": where.entity})
    earlier = _folders(out, run["id"])
    if len(earlier) == 1 and _written(earlier[0]) == hashed:
        return earlier[0]
    folder = _offline_run(run, where, temporary)
    write_json(folder / WRITTEN, {"id": run["id"], "sha256": hashed})
    for old in earlier:
        shutil.rmtree(old)
    return folder.rename(out / folder.name)


def _offline_run(run: dict, where: WeightsAndBiases, temporary: Path) -> Path:
    # These hold log files of wandb, which would otherwise be in the home folder.
    os.environ["WANDB_CACHE_DIR"] = os.environ["WANDB_DATA_DIR"] = str(temporary)
    import wandb  # here, because it takes a second, and because it reads the environment

    # Nothing about the machine, its user or the command goes into a run.
    settings = wandb.Settings(
        mode="offline",
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        save_code=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    about = {name: run[name] for name in ("id", "name", "group", "job_type", "tags", "config")}
    live = wandb.init(
        dir=temporary, project=where.project, entity=where.entity, settings=settings, reinit="finish_previous", **about
    )
    live.define_metric("*", step_metric="epoch")
    for row in run["rows"]:
        live.log(row, step=row["epoch"])
    live.finish()
    [folder] = _folders(temporary / "wandb", run["id"])
    shutil.rmtree(folder / "logs", ignore_errors=True)
    return folder


def _folders(out: Path, identity: str) -> list[Path]:
    return sorted(path for path in out.glob(f"offline-run-*-{identity}") if path.is_dir())


def _written(folder: Path) -> str | None:
    try:
        return read_json(folder / WRITTEN)["sha256"]
    except (TriptychError, KeyError):
        return None


def write_runs(trainings: Sequence[Training], job: WandbJob, out: Path, alone: bool = True) -> list[dict]:
    """Write the runs of all trainings, and give an entry for each.

    If the study is `alone` in the folder `out`, runs of trainings that are gone are removed.
    """
    runs = [describe(training, job.schedules) for training in trainings]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-", ignore_cleanup_errors=True) as temporary:
        # Absolute, because the service behind `wandb` does not always have this process's working folder.
        folders = [write_run(run, job.wandb, out, Path(temporary).resolve()) for run in runs]
    for stale in out.glob(f"offline-run-*/{WRITTEN}"):
        if alone and stale.parent not in folders:
            shutil.rmtree(stale.parent)
    return [
        {**{name: run[name] for name in ("id", "name", "group")}, "epochs": len(run["rows"]) - 1, "folder": folder}
        for run, folder in zip(runs, folders, strict=True)
    ]


def upload(folders: Sequence[Path]) -> None:
    """Upload the runs that were not uploaded yet, with `wandb sync`.

    Raises:
        TriptychError: some could not be uploaded.
    """
    waiting = [folder for folder in folders if not _uploaded(folder)]
    if not waiting:
        return
    command = [sys.executable, "-m", "wandb", "sync", *map(str, waiting)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60 * MINUTES)
    # The exit status is 0 even where nobody is logged in: only the mark beside each run tells.
    pending = [folder for folder in waiting if not _uploaded(folder)]
    if pending:
        parent = pending[0].parent
        raise TriptychError(
            f"{len(pending)} of {len(folders)} runs in {parent} could not be uploaded; log in (`wandb login`, or "
            f"WANDB_API_KEY) and run `wandb sync {parent}` on a machine with internet access, or "
            "set wandb.mode: offline"
        )


def _uploaded(folder: Path) -> bool:
    return any(folder.glob("*.wandb.synced"))


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych wandb`."""
    parser = argparse.ArgumentParser(
        prog="triptych wandb",
        description=main.__doc__,
        epilog="example: triptych wandb --configfile config/slake-cpu.yaml",
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--configfile", type=Path, help="the study's configuration; writes all training jobs so far")
    given.add_argument("--job", help="schedules and options as JSON, with --checkpoints and --out")
    parser.add_argument("--checkpoints", type=Path, nargs="+", default=[], help="manifests of the checkpoints")
    parser.add_argument("--out", type=Path, help="folder of the runs; wandb/ in the results folder by default")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the training jobs of a study as runs of Weights & Biases; with --configfile, also those in progress."""
    parser = build_parser()
    arguments = parser.parse_args(arguments)
    if arguments.configfile:
        study = read_study(arguments.configfile)
        job = WandbJob.of(study)
        folders = [study.checkpoint(cell) for cell in study.grid.trainings]
        default = study.path(WANDB).parent
        out = arguments.out or default
        alone = out.resolve() == default.resolve()  # another folder may hold runs of other studies
    else:
        if not arguments.out:
            parser.error("--job needs --out")
        job = WandbJob.model_validate_json(arguments.job)
        folders, out, alone = [path.parent for path in arguments.checkpoints], arguments.out, True
    trainings = [training for folder in folders if (training := read_training(folder))]
    runs = write_runs(trainings, job, out, alone)
    if arguments.job:  # by hand, there may be more to come
        write_json(out / "runs.json", [{name: run[name] for name in run if name != "folder"} for run in runs])
    done = sum(training.finished for training in trainings)
    print(f"{len(runs)} runs in {out}: {done} of finished training jobs, {len(runs) - done} of jobs in progress")
    print(f"to upload them from a machine with internet access: wandb sync {out}", flush=True)
    if job.wandb.mode == "online":
        upload([run["folder"] for run in runs])


if __name__ == "__main__":
    run_step(main)
