# Training: one rule for every stage of every schedule.
# A training under way saves itself in `last/` beside its outputs. That folder is no output, because Snakemake deletes
# the outputs of a job that fails: so a job that was killed, or stopped with status 75, goes on when it is run again.
# The steps of every cell of the grid take manifests and find the folders themselves: naming these with `subpath` takes
# longer in dry runs of thousands of jobs.
# `exec`, because SLURM's SIGTERM goes to all processes: a shell would die of it at once, and its job would end, and be
# swept away, while the training is still saving.


def training_data(wildcards):
    """Manifest and features of the stage's data set, and the folds where the split is one."""
    dataset = stage_data(wildcards)
    files = {
        "data": result(paths.DATA, dataset=dataset),
        "questions": ancient(result(paths.QUESTIONS, dataset=dataset)),
        "features": features_of(dataset, wildcards.prefix),
    }
    if wildcards.split == SHARED:
        files["audit"] = ancient(result(paths.AUDIT))  # it fails where held-out images would be seen
    else:
        files["folds"] = folds_of(wildcards.split)
    return files


def parent_manifest(wildcards):
    """The checkpoint that this stage starts from; nothing for a first stage, which starts from a fresh connector."""
    parent = grid.parent(Checkpoint(wildcards.prefix, wildcards.split, int(wildcards.seed)))
    return [] if parent is None else checkpoint_file(parent)


def training_job(wildcards):
    """The settings of a training: a change of them, and of them alone, trains again."""
    return jobs.TrainingJob.of(study, Checkpoint(wildcards.prefix, wildcards.split, int(wildcards.seed))).text()


rule train_stage:
    input:
        unpack(training_data),
        parent=parent_manifest,
        language_model=lambda wildcards: model_of("language_model", wildcards.prefix),
    output:
        manifest=result(paths.CHECKPOINT),
        connector=result(paths.CONNECTOR),
        metrics=result(paths.METRICS),
    log:
        log_of("train_stage"),
    benchmark:
        times_of("train_stage")
    priority: 1  # before predictions, so that the chains of stages end early
    conda:
        "../envs/triptych.yaml"
    threads: settings.training.threads * settings.training.processes
    params:
        job=training_job,
    message:
        "Train {wildcards.prefix} on {wildcards.split}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} exec $LAUNCH -m triptych.train --job {params.job:q} --parent {input.parent}"
        " --data {input.data} --features {input.features}"
        " --language-model {input.language_model} --out {output.manifest}"
        " $RUNNING > {log} 2>&1"
