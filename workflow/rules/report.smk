# What people look at first.


rule plot_stages:
    input:
        manifests=all_checkpoints("manifest.json"),
        metrics=all_checkpoints("metrics.jsonl"),
    output:
        csv="<results>/tables/stages.csv",
        tables=multiext("<results>/tables/stages", ".md", ".tex"),
        svg="<results>/figures/stages.svg",
        png="<results>/figures/stages.png",
    log:
        "<results>/logs/plot_stages.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        schedules=canonical_json(grid.ways(settings)),
        stages=grid.used_stages(settings),
    message:
        "Draw validation loss and accuracy per stage"
    shell:
        "python -m triptych.tables.stages --checkpoints {input.manifests} --schedules {params.schedules:q}"
        " --stages {params.stages:q} --csv {output.csv} --svg {output.svg} > {log} 2>&1"


rule report:
    input:
        predictions("", grid.schedules(settings)),
        predictions("", BASELINES),
        "<results>/tables/stages.csv",
        "<results>/data/audit.json",
        metrics=all_checkpoints("metrics.jsonl"),
        tables=final_tables,
    output:
        report("<results>/report.html", category="Study"),
    log:
        "<results>/logs/report.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        settings=study_settings,
        figures=subpath(output[0], parent=True),
    message:
        "Write the report"
    shell:
        "python -m triptych.report --settings {params.settings:q} --tables {input.tables} --out {output}"
        " --figures {params.figures}/figures > {log} 2>&1"


# By hand, also while trainings run: python -m triptych.report.wandb_runs --configfile config/...
rule write_wandb_runs:
    input:
        manifests=all_checkpoints("manifest.json", leak=True),
        metrics=all_checkpoints("metrics.jsonl", leak=True),
    output:
        "<results>/wandb/runs.json",
    log:
        "<results>/logs/write_wandb_runs.log",
    localrule: True  # the one that may need the internet
    conda:
        "../envs/triptych.yaml"
    params:
        job=canonical_json({"schedules": grid.ways(settings), "wandb": settings.wandb.model_dump()}),
        out=subpath(output[0], parent=True),
    message:
        "Write the runs of Weights & Biases"
    shell:
        "python -m triptych.report.wandb_runs --job {params.job:q} --checkpoints {input.manifests} --out {params.out} > {log} 2>&1"


# Nothing runs: what the study will cost, and what it can show.
rule plan:
    log:
        "<results>/logs/plan.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        settings=study_settings,
    message:
        "Plan the study"
    shell:
        "python -m triptych.commands.plan --settings {params.settings:q} 2>&1 | tee {log}"
