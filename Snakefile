# Triptych: from data to the answer to one question, "does stage 1 help?".
# The settings are in config/config.yaml, or in another file given with --configfile.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")


# Only when no --configfile is given: Snakemake would mix the two files key by key.
if not workflow.configfiles:

    configfile: Path(workflow.current_basedir.get_path_or_uri(secret_free=True)) / "config" / "config.yaml"


include: "workflow/rules/common.smk"


container: CONTAINER


include: "workflow/rules/inputs.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/transfer.smk"
include: "workflow/rules/report.smk"


onstart:
    try:
        workflow_hooks.refuse_expanded_paths(workflow, SCRIPTS)
        workflow_hooks.refuse_absent(workflow, study)
        workflow_hooks.refuse_dates_ahead(workflow)
        workflow_hooks.refuse_other_settings(workflow, study)
        if not yes_retrain:
            workflow_hooks.protect_trainings(workflow, settings.runtime.retrain_at_most)
    except TriptychError as error:
        raise WorkflowError(str(error))
    workflow_hooks.settle_answers(workflow)
    workflow_hooks.record_unwatched(workflow)


rule all:
    default_target: True
    input:
        final_tables,
        transfer_tables,
        result(paths.TABLE, table="stages.csv"),
        result(paths.AUDIT_PAGE),
        result(paths.REPORT),
        result(paths.FIGURES),
        all_checkpoints(paths.CONNECTOR, [*grid.schedules, *grid.swept]),
        kept_answers,
        [] if settings.wandb.mode == "disabled" else result(paths.WANDB),
    message:
        "The study is complete"
