# Data: source -> Parquet -> folds and vision features.
# Rules read small manifests, which Snakemake compares by content; large files are only `ancient`, so that a changed
# time stamp (a copy, a fresh clone) never leads to work being done again. Descriptor 3 is the screen: what a step says
# there (`announce` in utils/terminal.py) is read by people, and its log has it, too.


rule fetch_dataset:
    output:
        manifest=result(paths.SOURCE),
        tables=multiext(result(paths.SOURCE_FOLDER), "candidates.parquet", "questions.parquet", "rejects.parquet"),
    log:
        log_of("fetch_dataset"),
    priority: BEFORE_TRAININGS
    localrule: True
    conda:
        ENVIRONMENT
    params:
        settings=dataset_settings,
        local_tables=listed_files,
        out=subpath(output.manifest, parent=True),
    message:
        "Fetch and list data set {wildcards.dataset}"
    shell:
        "TRIPTYCH_SCREEN=3 python -m triptych.data.fetch --settings {params.settings:q} --out {params.out:q}"
        " 3>&2 > {log:q} 2>&1"


rule check_images:
    input:
        manifest=result(paths.SOURCE),
        candidates=ancient(result(paths.CANDIDATES)),
    output:
        result(paths.SHARD),
    log:
        log_of("check_images"),
    benchmark:
        times_of("check_images")
    priority: BEFORE_TRAININGS
    conda:
        ENVIRONMENT
    params:
        settings=dataset_settings,
        source=subpath(input.manifest, parent=True),
    message:
        "Read and check the images of {wildcards.dataset}, shard {wildcards.scatteritem}"
    shell:
        # Memory of images goes back and forth a thousand times a second: kept by the process, a tenth faster.
        "MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=33554432 python -m triptych.data.check"
        " --settings {params.settings:q} --source {params.source:q} --shard {wildcards.scatteritem:q}"
        " --out {output:q} > {log:q} 2>&1"


rule prepare_dataset:
    input:
        source=result(paths.SOURCE),
        shards=gather.shards(result(paths.SHARD, dataset="{{dataset}}")),
    output:
        questions=result(paths.QUESTIONS),
        rejects=result(paths.REJECTS),
        manifest=result(paths.DATA),
    log:
        log_of("prepare_dataset"),
    benchmark:
        times_of("prepare_dataset")
    priority: BEFORE_TRAININGS
    conda:
        ENVIRONMENT
    params:
        settings=dataset_settings,
        source=subpath(input.source, parent=True),
        out=subpath(output.manifest, parent=True),
    message:
        "Choose the images of data set {wildcards.dataset} and write its tables"
    shell:
        "TRIPTYCH_SCREEN=3 python -m triptych.data.prepare --settings {params.settings:q} --source {params.source:q}"
        " --out {params.out:q} 3>&2 > {log:q} 2>&1"


rule make_folds:
    input:
        manifest=result(paths.DATA, dataset=settings.folds.dataset),
        questions=ancient(result(paths.QUESTIONS, dataset=settings.folds.dataset)),
    output:
        table=result(paths.FOLDS_TABLE, dataset=settings.folds.dataset),
        summary=result(paths.FOLDS, dataset=settings.folds.dataset),
    log:
        log_of("make_folds"),
    priority: BEFORE_TRAININGS
    localrule: True
    conda:
        ENVIRONMENT
    params:
        settings=lambda wildcards: jobs.folds_text(study, wildcards.cut.removeprefix("-")),
        cut=lambda wildcards: f"--cut {wildcards.cut[1:]}-" if wildcards.cut else "",
        data=subpath(input.manifest, parent=True),
    message:
        "Cut {params.data} into folds{wildcards.cut}"
    shell:
        "python -m triptych.data.folds --data {params.data:q} --settings {params.settings:q} {params.cut} > {log:q} 2>&1"


rule audit_data:
    input:
        data=[result(paths.DATA, dataset=name) for name in grid.used_datasets],
        folds=result(paths.FOLDS, dataset=settings.folds.dataset, cut=""),
    output:
        result(paths.AUDIT),
        result(paths.AUDIT_PAGE),
    log:
        log_of("audit_data"),
    priority: BEFORE_TRAININGS
    localrule: True
    conda:
        ENVIRONMENT
    params:
        data=lambda wildcards, input: [str(Path(manifest).parent) for manifest in input.data],
        folded=settings.folds.dataset,
        shared=shared_and_asked(),
        threshold=settings.folds.near_duplicate,
        out=subpath(output[0], parent=True),
    message:
        "Look for leaks between all parts of the data"
    shell:
        "TRIPTYCH_SCREEN=3 python -m triptych.data.audit --data {params.data:q} --folded {params.folded:q}"
        " --shared {params.shared:q} --threshold {params.threshold:q} --out {params.out:q} 3>&2 > {log:q} 2>&1"


rule prepare_model:
    output:
        result(paths.MODEL),
    log:
        log_of("prepare_model"),
    priority: BEFORE_TRAININGS
    localrule: True
    conda:
        ENVIRONMENT
    params:
        settings=lambda wildcards: jobs.model_text(study, f"{wildcards.role}{wildcards.tag}"),
        out=subpath(output[0], parent=True),
    message:
        "Fetch and convert the {wildcards.role}{wildcards.tag}"
    shell:
        "TRIPTYCH_SCREEN=3 python -m triptych.model.prepare --role {wildcards.role:q} --settings {params.settings:q}"
        " --out {params.out:q} 3>&2 > {log:q} 2>&1"


rule encode_images:
    input:
        data=result(paths.DATA),
        encoder=result(paths.MODEL, role="vision_encoder"),
    output:
        result(paths.FEATURES),
    log:
        log_of("encode_images"),
    benchmark:
        times_of("encode_images")
    priority: BEFORE_TRAININGS
    conda:
        ENVIRONMENT
    threads: settings.runtime.threads
    resources:
        mem_mb=memory_of("encode_images"),
        runtime=minutes_of("encode_images"),
    params:
        dtype=settings.features.dtype,  # read from $FEATURES; here because it alone decides what runs again
        data=subpath(input.data, parent=True),
        encoder=subpath(input.encoder, parent=True),
        out=subpath(output[0], parent=True),
    message:
        "Encode the images of {wildcards.dataset}{wildcards.tag}"
    shell:
        "TRIPTYCH_SCREEN=3 OMP_NUM_THREADS={threads} python -m triptych.features.encode"
        ' --settings "$FEATURES" --data {params.data:q} --encoder {params.encoder:q} --out {params.out:q}'
        " 3>&2 > {log:q} 2>&1"
