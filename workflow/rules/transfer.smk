# Transfer: data sets of `evaluation.datasets`, which nothing trains on, are asked of every finished schedule. Their
# answers and tables have folders of their own, and none of the study's own tables reads them.


use rule predict_captions as predict_transfer with:
    input:
        unpack(models_of),
        checkpoint=result(paths.CHECKPOINT, split="{fold}"),
        data=result(paths.DATA),
        features=lambda wildcards: features_of(wildcards.dataset, wildcards.prefix),
        audit=ancient(result(paths.AUDIT)),  # it fails where what is asked was trained on
    output:
        update(result(paths.TRANSFER_PREDICTION)),
    log:
        log_of("predict_transfer"),
    benchmark:
        times_of("predict_transfer")
    resources:
        mem_mb=memory_of("predict_transfer"),
        runtime=minutes_of("predict_transfer"),
    params:
        job=jobs.transfer_text(study),
        views=lambda wildcards, output: wildcards.part,
        also=asked_together("predict_transfer", lambda cell: [paths.TRANSFER_PREDICTION.format(**cell)]),
    message:
        "Answer the questions of {wildcards.dataset} with {wildcards.prefix} of {wildcards.fold}, seed {wildcards.seed}"


rule predict_transfer_baseline:
    input:
        unpack(transfer_baseline_data),
    output:
        result(paths.TRANSFER_BASELINE),
    log:
        log_of("predict_transfer_baseline"),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        view=lambda wildcards: wildcards.part + limit_option(),
        other=lambda wildcards, input: (
            []
            if wildcards.split == SHARED
            else [f"--asked-data={input.asked}", f"--asked-features={input.asked_features}"]
        ),
    message:
        "Answer the questions of {wildcards.dataset} with {wildcards.baseline} of {wildcards.split}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.evaluate.baselines --baseline {wildcards.baseline:q}"
        " --data {input.data:q} --features {input.features:q} --split {wildcards.split:q} --view {params.view}"
        " {params.other:q} --out {output:q} > {log:q} 2>&1"


rule tabulate_transfer:
    input:
        transfer_answers,
    output:
        report(
            multiext(result(paths.TRANSFER_TABLE, table="{dataset}"), ".csv", ".md", ".tex", ".json"),
            caption="../report/transfer.rst",
            category="Tables",
            subcategory="Transfer",
        ),
    log:
        "<results>/logs/tabulate_transfer/{dataset}.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        part=lambda wildcards: settings.evaluation.datasets[wildcards.dataset],
        schedules=grid.compared,
        drawn=canonical_json(grid.drawn_once),
        margin=settings.evaluation.equivalence_margin,
        out=subpath(output[0], parent=True),
    message:
        "Write the table of {wildcards.dataset}, which nothing trains on"
    shell:
        "python -m triptych.tables.transfer --predictions {input:q} --dataset {wildcards.dataset:q}"
        " --part {params.part:q} --schedules {params.schedules:q} --drawn-once {params.drawn:q}"
        " --equivalence-margin {params.margin:q} --out {params.out:q} > {log:q} 2>&1"
