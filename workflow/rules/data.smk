# Data: source -> Parquet -> folds and vision features.
# Rules read small manifests, which Snakemake compares by content; large files are only `ancient`, so that a changed
# time stamp (a copy, a fresh clone) never leads to work being done again.


rule fetch_dataset:
    output:
        manifest="<results>/sources/{dataset}/manifest.json",
        tables=multiext("<results>/sources/{dataset}/", "candidates.parquet", "questions.parquet", "rejects.parquet"),
    log:
        "<results>/logs/fetch_dataset/{dataset}.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        settings=dataset_settings,
        local_tables=lambda wildcards: canonical_json(local_tables(datasets[wildcards.dataset])),
        out=subpath(output.manifest, parent=True),
    message:
        "Fetch and list data set {wildcards.dataset}"
    shell:
        "python -m triptych.data.fetch --settings {params.settings:q} --out {params.out} > {log} 2>&1"


rule check_images:
    input:
        manifest="<results>/sources/{dataset}/manifest.json",
        candidates=ancient("<results>/sources/{dataset}/candidates.parquet"),
    output:
        "<results>/data/{dataset}/shards/{scatteritem}.json",
    log:
        "<results>/logs/check_images/{dataset}/{scatteritem}.log",
    benchmark:
        "<results>/benchmarks/check_images/{dataset}/{scatteritem}.jsonl"
    conda:
        "../envs/triptych.yaml"
    params:
        settings=dataset_settings,
        source=subpath(input.manifest, parent=True),
    message:
        "Read and check the images of {wildcards.dataset}, shard {wildcards.scatteritem}"
    shell:
        # Memory of images goes back and forth a thousand times a second: kept by the process, a tenth faster.
        "MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=33554432 python -m triptych.data.check"
        " --settings {params.settings:q} --source {params.source} --shard {wildcards.scatteritem} --out {output} > {log} 2>&1"


rule prepare_dataset:
    input:
        source="<results>/sources/{dataset}/manifest.json",
        shards=gather.shards("<results>/data/{{dataset}}/shards/{scatteritem}.json"),
    output:
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
        settings=dataset_settings,
        source=subpath(input.source, parent=True),
        out=subpath(output.manifest, parent=True),
    message:
        "Choose the images of data set {wildcards.dataset} and write its tables"
    shell:
        "python -m triptych.data.prepare --settings {params.settings:q} --source {params.source}"
        " --out {params.out} > {log} 2>&1"


rule make_folds:
    input:
        manifest=f"<results>/data/{settings.folds.dataset}/manifest.json",
        questions=ancient(f"<results>/data/{settings.folds.dataset}/questions.parquet"),
    output:
        table=f"<results>/data/{settings.folds.dataset}/folds{{cut}}.parquet",
        summary=f"<results>/data/{settings.folds.dataset}/folds{{cut}}.json",
    log:
        "<results>/logs/make_folds{cut}.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        settings=folds_settings,
        cut=lambda wildcards: f"--cut {wildcards.cut[1:]}-" if wildcards.cut else "",
        data=subpath(input.manifest, parent=True),
    message:
        "Cut {params.data} into folds{wildcards.cut}"
    shell:
        "python -m triptych.data.folds --data {params.data} --settings {params.settings:q} {params.cut} > {log} 2>&1"


rule audit_data:
    input:
        data=expand("<results>/data/{dataset}/manifest.json", dataset=used_datasets),
        folds=f"<results>/data/{settings.folds.dataset}/folds.json",
    output:
        "<results>/data/audit.json",
        "<results>/data/audit.md",
    log:
        "<results>/logs/audit_data.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        data=lambda wildcards, input: [str(Path(manifest).parent) for manifest in input.data],
        folded=settings.folds.dataset,
        shared=[name for name in used_datasets if name != settings.folds.dataset],
        threshold=settings.folds.near_duplicate,
        out=subpath(output[0], parent=True),
    message:
        "Look for leaks between all parts of the data"
    shell:
        "python -m triptych.data.audit --data {params.data} --folded {params.folded} --shared {params.shared}"
        " --threshold {params.threshold} --out {params.out} > {log} 2>&1"


rule prepare_model:
    output:
        "<results>/models/{role}{tag}/manifest.json",
    log:
        "<results>/logs/prepare_model/{role}{tag}.log",
    localrule: True
    conda:
        "../envs/triptych.yaml"
    params:
        settings=model_settings,
        out=subpath(output[0], parent=True),
    message:
        "Fetch and convert the {wildcards.role}{wildcards.tag}"
    shell:
        "python -m triptych.model.prepare --role {wildcards.role} --settings {params.settings:q}"
        " --out {params.out} > {log} 2>&1"


rule encode_images:
    input:
        data="<results>/data/{dataset}/manifest.json",
        encoder="<results>/models/vision_encoder{tag}/manifest.json",
    output:
        "<results>/features/{dataset}{tag}/manifest.json",
    log:
        "<results>/logs/encode_images/{dataset}{tag}.log",
    benchmark:
        "<results>/benchmarks/encode_images/{dataset}{tag}.jsonl"
    conda:
        "../envs/triptych.yaml"
    threads: settings.training.threads
    params:
        dtype=settings.features.dtype,  # read from $FEATURES; here because it alone decides what runs again
        data=subpath(input.data, parent=True),
        encoder=subpath(input.encoder, parent=True),
        out=subpath(output[0], parent=True),
    message:
        "Encode the images of {wildcards.dataset}{wildcards.tag}"
    shell:
        'OMP_NUM_THREADS={threads} python -m triptych.features.encode --settings "$FEATURES" --data {params.data}'
        " --encoder {params.encoder} --out {params.out} > {log} 2>&1"
