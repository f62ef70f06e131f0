# What all rules share: the checked settings, the grid, and how a step is run.
import gc
import os
import re
import shlex
import sys
from functools import lru_cache
from pathlib import Path

SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))

import snakemake.common
import snakemake.rules
from snakemake.common import async_run
from snakemake.exceptions import WorkflowError
from triptych.config import grid
from triptych.commands.retraining import refuse_to_retrain
from triptych.data.fetch import local_tables
from triptych.errors import TriptychError
from triptych.io.manifest import canonical_json
from triptych.config.study import load_settings
from triptych.config.study import settings_text

# Jobs live to the end: looking for garbage among them, again and again, took up to a tenth of a dry run.
gc.set_threshold(50_000)

# Snakemake reads the signatures of the same functions 25 times for each job, an eighth of a dry run: they are kept.
read_once = lru_cache(4096)(snakemake.common.get_function_params)
snakemake.common.get_function_params = snakemake.rules.get_function_params = read_once

yes_retrain = str(config.pop("yes_retrain", "")).lower() == "true"
try:
    settings = load_settings(config, Path(workflow.configfiles[-1]).name)
except TriptychError as error:
    raise WorkflowError(str(error))


# Untrained arms; `python -m triptych.evaluate.baselines` knows them.
BASELINES = ["majority", "majority-per-question", "majority-per-place", "nearest-images", "nearest-features"]
# What is asked, by the ending of the file of answers: `triptych.evaluate.predictions.View` says what each is.
VIEWS = {"": "held-out", "-swapped": "swapped", "-blank": "blank", "-test": "test"}

# Data sets by the names that stages use, and those that some stage or the folds use.
datasets = settings.expanded_datasets()
used_datasets = grid.used_datasets(settings)

# How steps run, which must not make anything again when it changes: where features are kept, in how many processes
# trainings run, how they spare memory and time, when they save.
processes = settings.training.processes
os.environ.update(TRIPTYCH_PROCESSES=str(processes))  # by which profiles multiply what a training asks for
torchrun = f"torchrun --standalone --nproc-per-node {processes} --shutdown-timeout 300"
torchrun += " --signals-to-handle SIGTERM,SIGINT,SIGUSR1"
running = settings.training.model_dump(include={"gradient_checkpointing", "compile", "save_minutes", "time_limit_minutes"})
SHELL_VARIABLES = {
    "FEATURES": canonical_json(settings.features.model_dump()),
    "LAUNCH": "python" if processes == 1 else torchrun,
    "RUNNING": " ".join(f"--{name.replace('_', '-')} {value}" for name, value in running.items() if value is not None),
    "TRIPTYCH_CACHE": os.environ.get("TRIPTYCH_CACHE") or settings.cache,
}
# A job on a cluster must not need the internet, and must not wait for one that is not there.
if workflow.remote_exec:
    SHELL_VARIABLES |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}

# Strict mode is repeated because a prefix replaces Snakemake's own. Braces are doubled because Snakemake formats it.
shell.prefix(
    "set -euo pipefail; "
    f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
    f"PYTHONPATH={shlex.quote(str(SCRIPTS))} "
    + " ".join(f"{name}={shlex.quote(value)}" for name, value in SHELL_VARIABLES.items())
    .replace("{", "{{")
    .replace("}", "}}")
    + "; "
)


# Images are read and checked by this many processes side by side.
scattergather:
    shards=settings.shards,


wildcard_constraints:
    dataset="|".join(map(re.escape, datasets)),
    role="|".join(grid.ROLES),
    tag=f"(?:{'|'.join(map(re.escape, grid.tags(settings)))})",
    baseline="|".join(BASELINES),
    prefix="|".join(map(re.escape, grid.prefixes(settings))),
    representation="|".join(map(re.escape, grid.representations(settings))),
    split="shared|([a-z-]+-)?fold[0-9]+",
    fold="([a-z-]+-)?fold[0-9]+",
    cut=f"(?:{'|'.join(f'-{group}' for group in grid.leak_splits(settings))})?",
    seed="[0-9]+",
    view="|".join(VIEWS),


def checkpoint_file(cell, name):
    """Path of a file of one checkpoint."""
    return f"<results>/checkpoints/{cell.prefix}/{cell.split}/seed{cell.seed}/{name}"


def all_checkpoints(name, prefixes=None, leak=False):
    """Input function: a file of every checkpoint, or of those of the prefixes given; with the leak study's if asked.

    A function, as `predictions` and others are: lists of the whole grid would be read at the start of every job.
    """
    return lambda wildcards: [
        checkpoint_file(cell, name)
        for cell in (grid.trainings if leak else grid.checkpoints)(settings)
        if prefixes is None or cell.prefix in prefixes
    ]


wandb_runs = [] if settings.wandb.mode == "disabled" else ["<results>/wandb/runs.json"]


def study_settings(wildcards):
    """All settings as text, in their order; not those of the file, which --config may have changed."""
    return settings_text(settings)


def dataset_settings(wildcards):
    """The settings of a data set as text that depends on nothing else."""
    return canonical_json(datasets[wildcards.dataset].model_dump(mode="json", by_alias=True))


def model_settings(wildcards):
    """The settings of a model as text: the base's, or those of the ablation that its tag names."""
    return canonical_json(grid.models(settings)[f"{wildcards.role}{wildcards.tag}"].model_dump())


def model_of(role, prefix):
    """The vision encoder or the language model of a prefix."""
    return f"<results>/models/{getattr(grid.prefixes(settings)[prefix], role)}/manifest.json"


def features_of(dataset, prefix):
    """A data set's features by the encoder of a prefix."""
    return f"<results>/features/{grid.features(settings, dataset, prefix)}/manifest.json"


def protect_trainings():
    """Stop before many finished trainings are made again; called once, before the first job."""
    again = [
        (f"{job.wildcards.prefix} on {job.wildcards.split}, seed {job.wildcards.seed}", str(workflow.dag.reason(job)))
        for job in workflow.dag.needrun_jobs()
        if job.rule.name == "train_stage" and Path(job.output.manifest).exists()
    ]
    try:
        refuse_to_retrain(again, settings.training.retrain_at_most)
    except TriptychError as error:
        raise WorkflowError(str(error))


def know_unwatched():
    """Record what jobs left whose Snakemake was killed: without a record, no change of settings would be noticed."""
    for job in workflow.dag.jobs:
        if job.output and not workflow.dag.needrun(job) and not workflow.persistence.has_metadata(job):
            async_run(workflow.persistence.finished(job))


def cell(wildcards):
    """The cell of the grid that a checkpoint's wildcards name."""
    return grid.Checkpoint(wildcards.prefix, wildcards.split, int(wildcards.seed))


def folds_of(fold):
    """The file that says what a fold holds out."""
    return f"<results>/data/{settings.folds.dataset}/{grid.folds_name(fold)}.json"


def folds_settings(wildcards):
    """The settings of folds as text; the leak study's are of another kind."""
    other = {"group": wildcards.cut[1:]} if wildcards.cut else {}
    return canonical_json(settings.folds.model_dump() | other)


def training_data(wildcards):
    """Manifest and features of the stage's data set, and the folds where the split is one."""
    dataset = grid.stage_of(settings, wildcards.prefix).data
    files = {
        "data": f"<results>/data/{dataset}/manifest.json",
        "questions": ancient(f"<results>/data/{dataset}/questions.parquet"),
        "features": features_of(dataset, wildcards.prefix),
    }
    if wildcards.split == grid.SHARED:
        files["audit"] = ancient("<results>/data/audit.json")  # it fails where held-out images would be seen
    else:
        files["folds"] = folds_of(wildcards.split)
    return files


def parent_manifest(wildcards):
    """The checkpoint that this stage starts from; nothing for a first stage, which starts from a fresh connector."""
    parent = grid.parent(settings, cell(wildcards))
    return [] if parent is None else checkpoint_file(parent, "manifest.json")


def training_job(wildcards):
    """All that a training is told, as text that depends on nothing else: a change of it, and of it alone, retrains."""
    return canonical_json(grid.training_job(settings, cell(wildcards)))


def prediction_job(wildcards):
    """All that a prediction is told, as text that depends on nothing else."""
    told = settings.evaluation.model_dump(include={"max_new_tokens", "batch_size"})
    if settings.evaluation.max_questions:
        told["limit"] = settings.evaluation.max_questions
    return canonical_json({"precision": settings.training.precision, "view": VIEWS[wildcards.view], **told})


def baseline_view(wildcards):
    """What a baseline is asked; without a limit the view alone, which is what Snakemake recorded of finished studies."""
    limit = settings.evaluation.max_questions
    return VIEWS[wildcards.view] + (f" --limit {limit}" if limit else "")


def caption_stage(wildcards):
    """The data set of captions that a shared prefix ends on."""
    return grid.stage_of(settings, wildcards.prefix).data


def caption_job(wildcards):
    """All that describing images is told, as text that depends on nothing else."""
    told = settings.evaluation.model_dump(include={"max_new_tokens", "batch_size"})
    told |= {"limit": settings.evaluation.captions, "view": "captions"}
    return canonical_json({"precision": settings.training.precision, **told})


def probed(wildcards):
    """The checkpoints of a representation, one for every split, and its models; what is not trained has the base's."""
    prefix = wildcards.representation
    trained = prefix in grid.prefixes(settings)
    splits = grid.splits(settings, prefix) if trained else []
    cells = [grid.Checkpoint(prefix, split, int(wildcards.seed)) for split in splits]
    like = prefix if trained else grid.schedules(settings)[0]
    return {
        "checkpoints": [checkpoint_file(cell, "manifest.json") for cell in cells],
        "features": features_of(settings.folds.dataset, like),
        "language_model": model_of("language_model", like),
    }


def probe_job(wildcards):
    """All that a probe is told, as text that depends on nothing else."""
    prefix = wildcards.representation
    of = grid.settings_of(settings, prefix) if prefix in grid.prefixes(settings) else settings
    return canonical_json(
        {
            "representation": prefix,
            "seed": int(wildcards.seed),
            "connector": of.connector.model_dump(),
            "probe": settings.evaluation.probe.model_dump(),
        }
    )


# Answers of the probes. Where rows are cut instead of images, every image has been seen, so there are none.
probes = []
if settings.evaluation.probe and settings.folds.group != "row":
    probes = [
        f"<results>/probes/{name}/seed{seed}.parquet"
        for name in grid.representations(settings)
        for seed in (settings.seeds[:1] if name == grid.PRE_PROJECTION else settings.seeds)
    ]


def predictions(view, arms, folds=None):
    """Input function: files of the answers of schedules or baselines, of every fold (or of those given) and seed."""
    runs = ["untrained"] if arms and arms[0] in BASELINES else [f"seed{seed}" for seed in settings.seeds]
    return lambda wildcards: [
        f"<results>/predictions/{arm}/{fold}/{run}{view}.parquet"
        for arm in arms
        for fold in folds or grid.folds(settings)
        for run in runs
    ]


def tables(folder, controls):
    """Files that `triptych.tables.schedules` writes."""
    names = ["schedules", "by_content", *(["controls"] if controls else [])]
    return [f"{folder}/{name}.{kind}" for name in names for kind in ("csv", "md", "tex")]


# What a study delivers as tables of answers.
final_tables = tables("<results>/tables", settings.evaluation.controls)
if len(grid.schedules(settings)) > 1:
    final_tables.append("<results>/tables/comparison.md")
if probes:
    final_tables.append("<results>/tables/probe.md")


# Shared prefixes end on captions; what they are worth is scored on captions.
shared_prefixes = [prefix for prefix in grid.prefixes(settings) if grid.splits(settings, prefix) == [grid.SHARED]]
captioned = [
    f"<results>/predictions/{prefix}/shared/seed{seed}.parquet"
    for prefix in shared_prefixes
    if settings.evaluation.captions
    for seed in settings.seeds
]
if captioned:
    final_tables.append("<results>/tables/captions.md")

leak_splits = grid.leak_splits(settings)
if leak_splits:
    final_tables.append("<results>/tables/leak.md")
