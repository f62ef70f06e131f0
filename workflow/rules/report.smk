# What people look at first.


rule plot_stages:
    input:
        manifests=all_checkpoints(paths.CHECKPOINT),
        metrics=all_checkpoints(paths.METRICS),
    output:
        csv=report(
            result(paths.TABLE, table="stages.csv"),
            caption="../report/stages.rst",
            category="Tables",
            subcategory="Stages",
        ),
        tables=report(
            multiext(result(paths.TABLE, table="stages"), ".md", ".tex"),
            caption="../report/stages.rst",
            category="Tables",
            subcategory="Stages",
        ),
        svg=report(
            result(paths.FIGURE, figure="stages.svg"),
            caption="../report/stages.rst",
            category="Figures",
            subcategory="Stages",
        ),
        png=result(paths.FIGURE, figure="stages.png"),
    log:
        "<results>/logs/plot_stages.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        schedules=canonical_json(grid.lineage),
        stages=grid.used_stages,
    message:
        "Draw validation loss and accuracy per stage"
    shell:
        "python -m triptych.tables.stages --checkpoints {input.manifests:q} --schedules {params.schedules:q}"
        " --stages {params.stages:q} --csv {output.csv:q} --svg {output.svg:q} > {log:q} 2>&1"


rule report:
    input:
        predictions(HELD_OUT, grid.schedules),
        predictions(HELD_OUT, BASELINES),
        result(paths.TABLE, table="stages.csv"),
        result(paths.AUDIT),
        transfer_tables,
        metrics=all_checkpoints(paths.METRICS),
        tables=final_tables,
    output:
        report(result(paths.REPORT), caption="../report/report.rst", category="Report"),
    log:
        "<results>/logs/report.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        settings=lambda wildcards: study.text(),
        figures=subpath(output[0], parent=True),
    message:
        "Write the report"
    shell:
        "python -m triptych.report --settings {params.settings:q} --tables {input.tables:q} --out {output:q}"
        " --figures {params.figures:q}/figures > {log:q} 2>&1"


# By hand, also while trainings run: triptych wandb --configfile config/...
rule write_wandb_runs:
    input:
        manifests=all_checkpoints(paths.CHECKPOINT, leak=True),
        metrics=all_checkpoints(paths.METRICS, leak=True),
    output:
        result(paths.WANDB),
    log:
        "<results>/logs/write_wandb_runs.log",
    localrule: True  # the one that may need the internet
    conda:
        ENVIRONMENT
    params:
        job=jobs.WandbJob.of(study).text(),
        out=subpath(output[0], parent=True),
    message:
        "Write the runs of Weights & Biases"
    shell:
        "python -m triptych.report.wandb_runs --job {params.job:q} --checkpoints {input.manifests:q}"
        " --out {params.out:q} > {log:q} 2>&1"


# Nothing runs: what the study will cost, and what it can show.
rule plan:
    log:
        "<results>/logs/plan.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        settings=lambda wildcards: study.text(),
        grouping=lambda wildcards: requests().grouping.text(),
    message:
        "Plan the study"
    shell:
        "python -m triptych.commands.plan --settings {params.settings:q} --grouping {params.grouping:q} 2>&1 | tee {log:q}"
