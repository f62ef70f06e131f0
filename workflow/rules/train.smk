# Training: one rule for every stage of every schedule.


rule train_stage:
    input:
        unpack(training_data),
        parent=parent_manifest,
        language_model="<results>/models/language_model/manifest.json",
    output:
        manifest="<results>/checkpoints/{prefix}/{split}/seed{seed}/manifest.json",
        connector="<results>/checkpoints/{prefix}/{split}/seed{seed}/connector.safetensors",
        metrics="<results>/checkpoints/{prefix}/{split}/seed{seed}/metrics.jsonl",
    log:
        "<results>/logs/train_stage/{prefix}/{split}/seed{seed}.log",
    benchmark:
        "<results>/benchmarks/train_stage/{prefix}/{split}/seed{seed}.jsonl"
    priority: 1  # before predictions, so that the chains of stages end early
    conda:
        "../envs/triptych.yaml"
    threads: settings.training.threads
    params:
        job=training_job,
        data=subpath(input.data, parent=True),
        features=subpath(input.features, parent=True),
        language_model=subpath(input.language_model, parent=True),
        out=subpath(output.manifest, parent=True),
    message:
        "Train {wildcards.prefix} on {wildcards.split}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.train --job {params.job:q} --parent {input.parent}"
        " --data {params.data} --features {params.features} --language-model {params.language_model}"
        " --out {params.out} > {log} 2>&1"
