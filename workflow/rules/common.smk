# What all rules share: the checked study, how a step is run, and the paths of results.
import json
import os
import re
import shlex
import signal
import sys
from functools import cache
from pathlib import Path

# Beside this file, also where another workflow uses these rules as a module; `workflow.basedir` is that workflow's.
SCRIPTS = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod
from triptych import workflow_hooks
from triptych.commands.requests import Grouping, Requests
from triptych.config import jobs, paths
from triptych.config.arms import BASELINES, CAPTIONS, HELD_OUT, PARTS, TEST, question_views, view_suffix
from triptych.config.grid import ROLES, SHARED, Checkpoint, cut_of, is_shared
from triptych.config.paths import STEPS
from triptych.config.study import load_study
from triptych.config.texts import cache_folder
from triptych.config.wildcards import EACH, asked_views, seeing, trainings_to_come
from triptych.config.yaml_file import read_yaml, with_types
from triptych.errors import TriptychError
from triptych.io.manifest import canonical_json

workflow_hooks.speed_up_dry_runs()
workflow_hooks.recognise_earlier_predictions()
workflow_hooks.explain_kills()

yes_retrain = str(config.pop("yes_retrain", "")).lower() == "true"
try:
    files = [Path(file) for file in workflow.configfiles]
    config = with_types(config, workflow.config_settings.config)
    written = [f"{file.name}: {fault}" for file in files if file.is_file() for fault in read_yaml(file)[1]]
    study = load_study(config, files[-1].name if files else "config", written)
    workflow_hooks.refuse_edited(study, submitted=workflow.remote_exec)
except TriptychError as error:
    raise WorkflowError(str(error))
settings, grid = study.settings, study.grid
views = {view_suffix(view): view for view in question_views()}  # what is asked, by the ending of the file of answers

# How steps run, which must not make anything again when it changes: where features are kept, in how many processes
# trainings run, how they spare memory and time, when they save.
processes = settings.runtime.processes
os.environ.update(TRIPTYCH_PROCESSES=str(processes))  # by which profiles multiply what a training asks for
os.environ.pop("TORCHELASTIC_RUN_ID", None)  # of a `torchrun` around Snakemake, which trainings do not belong to
torchrun = f"torchrun --standalone --nproc-per-node {processes} --shutdown-timeout 300"
torchrun += " --signals-to-handle SIGTERM,SIGINT,SIGUSR1"
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` leaves it
    torchrun += ",SIGHUP"
# Memory comes in large pages where the system has them: in small ones, steps of a training on a CPU take ever longer
# (docs/performance.md). Only glibc of version 2.35 or newer reads this; what a user has set comes last, and counts.
tunables = filter(None, ["glibc.malloc.hugetlb=1", os.environ.get("GLIBC_TUNABLES")])
SHELL_VARIABLES = {
    "FEATURES": canonical_json(settings.features.model_dump()),
    "GLIBC_TUNABLES": ":".join(tunables),
    "LAUNCH": "python" if processes == 1 else torchrun,
    "RUNTIME": settings.runtime.model_dump_json(),
    "TRIPTYCH_DEVICE": settings.runtime.device,
    "TRIPTYCH_CACHE": str(cache_folder(settings.cache)),
}
# A job on a cluster must not need the internet, and must not wait for one that is not there.
if workflow.remote_exec:
    SHELL_VARIABLES |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}

# Where steps on a GPU share a job of a cluster, they take turns.
workflow_hooks.run_groups(workflow)

# Steps use the Python that Snakemake runs in; with --sdm conda or apptainer, that of the environment or the container.
deployed = {DeploymentMethod.CONDA, DeploymentMethod.APPTAINER} & set(workflow.deployment_settings.deployment_method)
# Without conda, none where the path of this folder has braces, which Snakemake would take for wildcards.
named = DeploymentMethod.CONDA in deployed or not set("{}") & set(str(SCRIPTS))
ENVIRONMENT = "../envs/triptych.yaml" if named else None
CONTAINER = str(SCRIPTS.parents[1] / "containers/triptych.sif") if DeploymentMethod.APPTAINER in deployed else None
python_first = "" if deployed else f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
exported = " ".join(f"{name}={shlex.quote(value)}" for name, value in SHELL_VARIABLES.items())
preamble = f"set -euo pipefail; export {python_first}PYTHONPATH={shlex.quote(str(SCRIPTS))} {exported}; "

# Strict mode is repeated because a prefix replaces Snakemake's own. Braces are doubled because Snakemake formats it.
shell.prefix(preamble.replace("{", "{{").replace("}", "}}"))


# Of jobs that are ready, those that trainings wait for come first, then trainings, then answers and look-ups.
BEFORE_TRAININGS = 1000


# Images are read and checked by this many processes side by side.
scattergather:
    shards=settings.shards,


def one_of(names):
    """A wildcard's constraint: one of these names."""
    return f"(?:{'|'.join(map(re.escape, names))})"


wildcard_constraints:
    dataset=one_of(study.datasets),
    role=one_of(ROLES),
    tag=one_of(grid.tags),
    baseline=one_of(BASELINES),
    prefix=one_of(grid.prefixes),
    representation=one_of(grid.representations),
    split="shared|([a-z-]+-)?fold[0-9]+",  # shared-fold0, too
    fold=f"(?!{SHARED}-)([a-z-]+-)?fold[0-9]+",
    draw=one_of(split.removeprefix(SHARED) for split in grid.shared_splits),
    cut=f"(?:{'|'.join(f'-{group}' for group in grid.leak_splits)})?",
    seed="[0-9]+",
    view=one_of(views),
    part=one_of(PARTS),
