# Training: one rule for every stage of every schedule.
# A training under way saves itself in `last/` beside its outputs. That folder is no output, because Snakemake deletes
# the outputs of a job that fails: so a job that was killed, or stopped with status 75, goes on when it is run again.
# The steps of every cell of the grid take manifests and find the folders themselves: naming these with `subpath` takes
# longer in dry runs of thousands of jobs.
# `exec`, because SLURM's SIGTERM goes to all processes: a shell would die of it at once, and its job would end, and be
# swept away, while the training is still saving.


rule train_stage:
    input:
        unpack(training_data),
        parent=parent_manifest,
        vision_encoder=trained_encoder,
        language_model=lambda wildcards: model_of("language_model", wildcards.prefix),
    output:
        manifest=result(paths.CHECKPOINT),
        connector=result(paths.CONNECTOR),
        metrics=result(paths.METRICS),
    log:
        log_of("train_stage"),
    benchmark:
        times_of("train_stage")
    priority: chain_length  # the longest chain first, and answers between trainings
    conda:
        ENVIRONMENT
    threads: settings.runtime.threads * settings.runtime.processes
    resources:
        mem_mb=memory_of("train_stage"),
        runtime=minutes_of("train_stage"),
    params:
        job=training_job,
    message:
        "Train {wildcards.prefix} on {wildcards.split}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} exec $LAUNCH -m triptych.train --job {params.job:q} --parent {input.parent:q}"
        " --data {input.data:q} --features {input.features:q} --vision-encoder {input.vision_encoder:q}"
        " --language-model {input.language_model:q} --out {output.manifest:q}"
        ' --runtime "$RUNTIME" > {log:q} 2>&1'
