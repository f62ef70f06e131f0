# What people look at first.


rule tabulate_stages:
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
    log:
        "<results>/logs/tabulate_stages.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        schedules=canonical_json(grid.lineage),
    message:
        "Write the table of loss and accuracy of every stage"
    shell:
        "python -m triptych.tables.stages --checkpoints {input.manifests:q} --schedules {params.schedules:q}"
        " --csv {output.csv:q} > {log:q} 2>&1"


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
        page=report(result(paths.REPORT), caption="../report/report.rst", category="Report"),
        captions=result(paths.FIGURES),
    log:
        "<results>/logs/report.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        settings=lambda wildcards: study.text(),
        figures=subpath(output.captions, parent=True),
    message:
        "Write the report, and its figures for papers"
    shell:
        "python -m triptych.report --settings {params.settings:q} --tables {input.tables:q}"
        " --out {output.page:q} --figures {params.figures:q} > {log:q} 2>&1"


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
