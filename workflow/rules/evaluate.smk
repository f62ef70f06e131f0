# Evaluation: answers of finished schedules and of untrained baselines; then the tables, from these records alone.


rule predict:
    input:
        checkpoint="<results>/checkpoints/{prefix}/{fold}/seed{seed}/manifest.json",
        folds=lambda wildcards: folds_of(wildcards.fold),
        features=lambda wildcards: features_of(settings.folds.dataset, wildcards.prefix),
        vision_encoder=lambda wildcards: model_of("vision_encoder", wildcards.prefix),
        language_model=lambda wildcards: model_of("language_model", wildcards.prefix),
    output:
        "<results>/predictions/{prefix}/{fold}/seed{seed}{view}.parquet",
    log:
        "<results>/logs/predict/{prefix}/{fold}/seed{seed}{view}.log",
    benchmark:
        "<results>/benchmarks/predict/{prefix}/{fold}/seed{seed}{view}.jsonl"
    conda:
        "../envs/triptych.yaml"
    threads: settings.training.threads
    params:
        job=prediction_job,
        view=lambda wildcards: VIEWS[wildcards.view],
    message:
        "Answer the {params.view} questions of {wildcards.fold} with {wildcards.prefix}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.evaluate.predict --checkpoint {input.checkpoint} --job {params.job:q}"
        " --data $(dirname {input.folds}) --features $(dirname {input.features})"
        " --vision-encoder $(dirname {input.vision_encoder}) --language-model $(dirname {input.language_model})"
        " --out {output} > {log} 2>&1"


rule predict_captions:
    input:
        checkpoint="<results>/checkpoints/{prefix}/shared/seed{seed}/manifest.json",
        data=lambda wildcards: f"<results>/data/{caption_stage(wildcards)}/manifest.json",
        features=lambda wildcards: features_of(caption_stage(wildcards), wildcards.prefix),
        vision_encoder=lambda wildcards: model_of("vision_encoder", wildcards.prefix),
        language_model=lambda wildcards: model_of("language_model", wildcards.prefix),
    output:
        "<results>/predictions/{prefix}/shared/seed{seed}.parquet",
    log:
        "<results>/logs/predict_captions/{prefix}/seed{seed}.log",
    benchmark:
        "<results>/benchmarks/predict_captions/{prefix}/seed{seed}.jsonl"
    conda:
        "../envs/triptych.yaml"
    threads: settings.training.threads
    params:
        job=caption_job,
    message:
        "Describe images of the validation part with {wildcards.prefix}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.evaluate.predict --checkpoint {input.checkpoint} --job {params.job:q}"
        " --data $(dirname {input.data}) --features $(dirname {input.features})"
        " --vision-encoder $(dirname {input.vision_encoder}) --language-model $(dirname {input.language_model})"
        " --out {output} > {log} 2>&1"


rule predict_baseline:
    input:
        data=f"<results>/data/{settings.folds.dataset}/manifest.json",
        folds=lambda wildcards: folds_of(wildcards.fold),
        questions=ancient(f"<results>/data/{settings.folds.dataset}/questions.parquet"),
        features=f"<results>/features/{settings.folds.dataset}/manifest.json",
    output:
        "<results>/predictions/{baseline}/{fold}/untrained{view}.parquet",
    log:
        "<results>/logs/predict_baseline/{baseline}/{fold}{view}.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        view=baseline_view,
    message:
        "Answer questions of {wildcards.fold} with {wildcards.baseline}: {params.view}"
    shell:
        "python -m triptych.evaluate.baselines --baseline {wildcards.baseline} --data $(dirname {input.folds})"
        " --features $(dirname {input.features}) --split {wildcards.fold} --view {params.view}"
        " --out {output} > {log} 2>&1"


rule tabulate:
    input:
        predictions("", grid.schedules(settings)),
        predictions("", BASELINES),
        [predictions(f"-{view}", grid.schedules(settings)) for view in settings.evaluation.controls],
    output:
        tables("<results>/tables", settings.evaluation.controls),
    log:
        "<results>/logs/tabulate.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        schedules=grid.schedules(settings),
        baselines=BASELINES,
        out=subpath(output[0], parent=True),
    message:
        "Write the tables of schedules, baselines and controls"
    shell:
        "python -m triptych.tables.schedules --predictions {input} --schedules {params.schedules}"
        " --baselines {params.baselines} --out {params.out} > {log} 2>&1"


rule compare_schedules:
    input:
        predictions("", grid.schedules(settings)),
    output:
        multiext("<results>/tables/comparison", ".csv", ".md", ".json"),
    log:
        "<results>/logs/compare_schedules.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        schedules=grid.schedules(settings),
        margin=settings.evaluation.equivalence_margin,
        out=subpath(output[0], parent=True),
    message:
        "Compare the first schedule with each of the others"
    shell:
        "python -m triptych.tables.comparison --predictions {input} --schedules {params.schedules} --equivalence-margin {params.margin}"
        " --out {params.out} > {log} 2>&1"


rule probe:
    input:
        unpack(probed),
        data=f"<results>/data/{settings.folds.dataset}/manifest.json",
        folds=f"<results>/data/{settings.folds.dataset}/folds.json",
        questions=ancient(f"<results>/data/{settings.folds.dataset}/questions.parquet"),
    output:
        "<results>/probes/{representation}/seed{seed}.parquet",
    log:
        "<results>/logs/probe/{representation}/seed{seed}.log",
    benchmark:
        "<results>/benchmarks/probe/{representation}/seed{seed}.jsonl"
    conda:
        "../envs/triptych.yaml"
    params:
        job=probe_job,
    message:
        "Probe the image tokens of {wildcards.representation}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.evaluate.probe --job {params.job:q} --checkpoints {input.checkpoints}"
        " --data $(dirname {input.folds}) --features $(dirname {input.features})"
        " --language-model $(dirname {input.language_model}) --out {output} > {log} 2>&1"


rule tabulate_probe:
    input:
        probes,
    output:
        csv="<results>/tables/probe.csv",
        tables=multiext("<results>/tables/probe", ".md", ".tex"),
        svg="<results>/figures/probe.svg",
        png="<results>/figures/probe.png",
    log:
        "<results>/logs/tabulate_probe.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        order=grid.representations(settings),
        shared=shared_prefixes,
        references=canonical_json({name: grid.reference(settings, name) for name in grid.representations(settings)}),
        ways=canonical_json({prefix: grid.way(settings, prefix) for prefix in grid.prefixes(settings)}),
    message:
        "Write table and figure of the probes"
    shell:
        "python -m triptych.tables.probes --probes {input} --order {params.order} --shared {params.shared}"
        " --references {params.references:q} --ways {params.ways:q} --csv {output.csv} --svg {output.svg} > {log} 2>&1"


rule tabulate_leak:
    input:
        [predictions("", grid.LOOKUPS, folds) for folds in leak_splits.values()],
        [
            predictions("", settings.evaluation.leak.schedules, folds)
            for folds in leak_splits.values()
            if settings.evaluation.leak.schedules
        ],
    output:
        multiext("<results>/tables/leak", ".csv", ".md", ".tex"),
    log:
        "<results>/logs/tabulate_leak.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        splits=canonical_json(list(leak_splits.items())),
        out=subpath(output[0], parent=True),
    message:
        "Write the table of what leaking folds add"
    shell:
        "python -m triptych.tables.leakage --predictions {input} --splits {params.splits:q} --out {params.out} > {log} 2>&1"


rule tabulate_captions:
    input:
        captioned,
    output:
        multiext("<results>/tables/captions", ".csv", ".md", ".tex"),
    log:
        "<results>/logs/tabulate_captions.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        out=subpath(output[0], parent=True),
    message:
        "Write the table of captions"
    shell:
        "python -m triptych.tables.captions --predictions {input} --out {params.out} > {log} 2>&1"


# The source's own test part is asked only by `snakemake test`, once everything else is decided. What is answered stays.
rule tabulate_test:
    input:
        predictions("-test", grid.schedules(settings)),
        predictions("-test", BASELINES),
    output:
        tables("<results>/tables/test", []),
    log:
        "<results>/logs/tabulate_test.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        schedules=grid.schedules(settings),
        baselines=BASELINES,
        out=subpath(output[0], parent=True),
    message:
        "Write the tables of the test part"
    shell:
        "python -m triptych.tables.schedules --predictions {input} --view test --schedules {params.schedules}"
        " --baselines {params.baselines} --out {params.out} > {log} 2>&1"


rule test:
    input:
        "<results>/tables/test/schedules.csv",
    message:
        "The test part is scored"
