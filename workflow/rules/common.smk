# What all rules share: the checked settings, the grid, and how a step is run.
import os
import re
import shlex
import sys
from pathlib import Path

SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))

from snakemake.exceptions import WorkflowError
from triptych import grid
from triptych.settings import load_settings
from triptych.storage import TriptychError, canonical_json

try:
    settings = load_settings(config, Path(workflow.configfiles[-1]).name)
except TriptychError as error:
    raise WorkflowError(str(error))


# Untrained arms; `python -m triptych.baseline` knows them.
BASELINES = ["majority", "majority-per-question"]

# Strict mode is repeated because a prefix replaces Snakemake's own. The cache is no parameter of any rule: moving it
# must not make anything again.
shell.prefix(
    "set -euo pipefail; "
    f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
    f"PYTHONPATH={shlex.quote(str(SCRIPTS))} "
    f"TRIPTYCH_CACHE={shlex.quote(os.environ.get('TRIPTYCH_CACHE') or settings.cache)}; "
)


wildcard_constraints:
    dataset="|".join(map(re.escape, settings.datasets)),
    role="language_model|vision_encoder",
    baseline="|".join(BASELINES),
    prefix="|".join(map(re.escape, grid.prefixes(settings))),
    split="shared|fold[0-9]+",
    fold="fold[0-9]+",
    seed="[0-9]+",


def checkpoint_file(cell, name):
    """Path of a file of one checkpoint."""
    return f"<results>/checkpoints/{cell.prefix}/{cell.split}/seed{cell.seed}/{name}"


# What a study delivers beside its tables: the last checkpoint of every schedule.
final_checkpoints = [
    checkpoint_file(cell, "connector.safetensors")
    for cell in grid.checkpoints(settings)
    if cell.prefix in grid.schedules(settings)
]


def stage_of(wildcards):
    """The settings of the stage that a prefix ends on."""
    return settings.stages[grid.last_stage(settings, wildcards.prefix)]


def cell(wildcards):
    """The cell of the grid that a checkpoint's wildcards name."""
    return grid.Checkpoint(wildcards.prefix, wildcards.split, int(wildcards.seed))


def training_data(wildcards):
    """Manifest and features of the stage's data set, and the folds where the split is one."""
    dataset = stage_of(wildcards).data
    files = {
        "data": f"<results>/data/{dataset}/manifest.json",
        "questions": ancient(f"<results>/data/{dataset}/questions.parquet"),
        "features": f"<results>/features/{dataset}/manifest.json",
    }
    if wildcards.split != grid.SHARED:
        files["folds"] = f"<results>/data/{dataset}/folds.json"
    return files


def parent_manifest(wildcards):
    """The checkpoint that this stage starts from; nothing for a first stage, which starts from a fresh connector."""
    parent = grid.parent(settings, cell(wildcards))
    return [] if parent is None else checkpoint_file(parent, "manifest.json")


def training_job(wildcards):
    """All that a training is told, as text that depends on nothing else: a change of it, and of it alone, retrains."""
    job = {
        "prefix": wildcards.prefix,
        "split": wildcards.split,
        "seed": int(wildcards.seed),
        "stage_name": grid.last_stage(settings, wildcards.prefix),
        "stage": stage_of(wildcards).model_dump(),
        "connector": settings.connector.model_dump(),
        "lora": settings.lora.model_dump() if "lora" in stage_of(wildcards).train else None,
        "training": settings.training.model_dump(exclude={"threads"}),
    }
    return canonical_json(job)
