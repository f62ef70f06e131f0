# Evaluation: answers of finished schedules and of untrained baselines to the held-out questions of each fold.


rule predict:
    input:
        checkpoint="<results>/checkpoints/{prefix}/{fold}/seed{seed}/manifest.json",
        weights=ancient("<results>/checkpoints/{prefix}/{fold}/seed{seed}/connector.safetensors"),
        folds=f"<results>/data/{settings.folds.dataset}/folds.json",
        features=f"<results>/features/{settings.folds.dataset}/manifest.json",
        language_model="<results>/models/language_model/manifest.json",
    output:
        "<results>/predictions/{prefix}/{fold}/seed{seed}.parquet",
    log:
        "<results>/logs/predict/{prefix}/{fold}/seed{seed}.log",
    benchmark:
        "<results>/benchmarks/predict/{prefix}/{fold}/seed{seed}.jsonl"
    conda:
        "../envs/triptych.yaml"
    threads: settings.training.threads
    params:
        job=canonical_json(
            {
                "precision": settings.training.precision,
                "evaluation": settings.evaluation.model_dump(),
            }
        ),
        data=subpath(input.folds, parent=True),
        features=subpath(input.features, parent=True),
        language_model=subpath(input.language_model, parent=True),
    message:
        "Answer the held-out questions of {wildcards.fold} with {wildcards.prefix}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.predict --checkpoint {input.checkpoint} --job {params.job:q}"
        " --data {params.data} --features {params.features} --language-model {params.language_model}"
        " --out {output} > {log} 2>&1"


rule predict_baseline:
    input:
        folds=f"<results>/data/{settings.folds.dataset}/folds.json",
        questions=ancient(f"<results>/data/{settings.folds.dataset}/questions.parquet"),
    output:
        "<results>/predictions/{baseline}/{fold}/untrained.parquet",
    log:
        "<results>/logs/predict_baseline/{baseline}/{fold}.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        data=subpath(input.folds, parent=True),
    message:
        "Answer the held-out questions of {wildcards.fold} with {wildcards.baseline}"
    shell:
        "python -m triptych.baseline --baseline {wildcards.baseline} --data {params.data}"
        " --split {wildcards.fold} --out {output} > {log} 2>&1"


rule tabulate_schedules:
    input:
        trained=expand(
            "<results>/predictions/{schedule}/{fold}/seed{seed}.parquet",
            schedule=grid.schedules(settings),
            fold=grid.folds(settings),
            seed=settings.seeds,
        ),
        untrained=expand(
            "<results>/predictions/{baseline}/{fold}/untrained.parquet",
            baseline=BASELINES,
            fold=grid.folds(settings),
        ),
    output:
        csv="<results>/tables/schedules.csv",
        markdown="<results>/tables/schedules.md",
    log:
        "<results>/logs/tabulate_schedules.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        schedules=grid.schedules(settings),
        baselines=BASELINES,
    message:
        "Write the table of schedules and baselines"
    shell:
        "python -m triptych.tables --predictions {input.trained} {input.untrained}"
        " --schedules {params.schedules} --baselines {params.baselines}"
        " --csv {output.csv} --markdown {output.markdown} > {log} 2>&1"
