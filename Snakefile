# Triptych: from data to the answer to one question, "does stage 1 help?".
# The settings are in config/config.yaml, or in another file given with --configfile.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")


# Only when no --configfile is given: Snakemake would mix the two files key by key.
if not workflow.configfiles:

    configfile: Path(workflow.basedir) / "config" / "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


onstart:
    if not yes_retrain:
        protect_trainings()
    know_unwatched()


rule all:
    default_target: True
    input:
        final_tables,
        "<results>/tables/stages.csv",
        "<results>/figures/stages.svg",
        "<results>/figures/stages.png",
        "<results>/data/audit.md",
        "<results>/report.html",
        all_checkpoints("connector.safetensors", grid.schedules(settings)),
        wandb_runs,
    message:
        "The study is complete"
