# Data: source -> Parquet -> folds and vision features.
# Rules read small manifests, which Snakemake compares by content; large files are only `ancient`, so that a changed
# time stamp (a copy, a fresh clone) never leads to work being done again.


rule fetch_dataset:
    output:
        "<results>/sources/{dataset}.json",
    log:
        "<results>/logs/fetch_dataset/{dataset}.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        settings=lambda wildcards: canonical_json(settings.datasets[wildcards.dataset].model_dump()),
    message:
        "Fetch the raw files of data set {wildcards.dataset}"
    shell:
        "python -m triptych.sources.fetch --settings {params.settings:q} --out {output} > {log} 2>&1"


rule prepare_dataset:
    input:
        "<results>/sources/{dataset}.json",
    output:
        images="<results>/data/{dataset}/images.parquet",
        questions="<results>/data/{dataset}/questions.parquet",
        rejects="<results>/data/{dataset}/rejects.parquet",
        manifest="<results>/data/{dataset}/manifest.json",
    log:
        "<results>/logs/prepare_dataset/{dataset}.log",
    benchmark:
        "<results>/benchmarks/prepare_dataset/{dataset}.jsonl"
    conda:
        "../envs/triptych.yaml"
    params:
        settings=lambda wildcards: canonical_json(settings.datasets[wildcards.dataset].model_dump()),
        out=subpath(output.manifest, parent=True),
    message:
        "Check and prepare data set {wildcards.dataset}"
    shell:
        "python -m triptych.prepare --settings {params.settings:q} --out {params.out} > {log} 2>&1"


rule make_folds:
    input:
        manifest=f"<results>/data/{settings.folds.dataset}/manifest.json",
        questions=ancient(f"<results>/data/{settings.folds.dataset}/questions.parquet"),
    output:
        table=f"<results>/data/{settings.folds.dataset}/folds.parquet",
        summary=f"<results>/data/{settings.folds.dataset}/folds.json",
    log:
        "<results>/logs/make_folds.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        settings=canonical_json(settings.folds.model_dump()),
        data=subpath(input.manifest, parent=True),
    message:
        "Cut {params.data} into folds"
    shell:
        "python -m triptych.folds --data {params.data} --settings {params.settings:q} > {log} 2>&1"


rule prepare_model:
    output:
        "<results>/models/{role}/manifest.json",
    log:
        "<results>/logs/prepare_model/{role}.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        settings=lambda wildcards: canonical_json(getattr(settings.models, wildcards.role).model_dump()),
        out=subpath(output[0], parent=True),
    message:
        "Fetch and convert the {wildcards.role}"
    shell:
        "python -m triptych.model.assets --role {wildcards.role} --settings {params.settings:q}"
        " --out {params.out} > {log} 2>&1"


rule encode_images:
    input:
        data="<results>/data/{dataset}/manifest.json",
        images=ancient("<results>/data/{dataset}/images.parquet"),
        encoder="<results>/models/vision_encoder/manifest.json",
    output:
        "<results>/features/{dataset}/manifest.json",
    log:
        "<results>/logs/encode_images/{dataset}.log",
    benchmark:
        "<results>/benchmarks/encode_images/{dataset}.jsonl"
    conda:
        "../envs/triptych.yaml"
    threads: settings.training.threads
    params:
        data=subpath(input.data, parent=True),
        encoder=subpath(input.encoder, parent=True),
        out=subpath(output[0], parent=True),
    message:
        "Encode the pictures of {wildcards.dataset}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.encode --data {params.data} --encoder {params.encoder}"
        " --out {params.out} > {log} 2>&1"
