# Evaluation: records of the answers of finished schedules and of untrained baselines, of probes and of occlusion.
# Answers are `update`d: Snakemake does not remove them before a step, which keeps those that need not be asked again.
# Which views a step is asked is derived from its outputs and so no recorded setting: another view asks itself alone.


rule predict_captions:
    input:
        unpack(models_of),
        checkpoint=result(paths.CHECKPOINT, split=f"{SHARED}{{draw}}"),
        data=lambda wildcards: result(paths.DATA, dataset=stage_data(wildcards)),
        features=lambda wildcards: features_of(stage_data(wildcards), wildcards.prefix),
    output:
        update(result(paths.CAPTION_PREDICTION)),
    log:
        log_of("predict_captions"),
    benchmark:
        times_of("predict_captions")
    conda:
        ENVIRONMENT
    threads: settings.runtime.threads
    resources:
        mem_mb=memory_of("predict_captions"),
        runtime=minutes_of("predict_captions"),
    params:
        job=jobs.prediction_text(study, CAPTIONS),
        views=lambda wildcards, output: CAPTIONS,
        also=lambda wildcards, output: "",
    message:
        "Describe images of the validation part with {wildcards.prefix} on shared{wildcards.draw}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.evaluate.predict --checkpoint {input.checkpoint:q}"
        " --job {params.job:q} --data {input.data:q} --features {input.features:q}"
        " --vision-encoder {input.vision_encoder:q} --language-model {input.language_model:q}"
        ' --views {params.views} --out {output:q} {params.also} --runtime "$RUNTIME" > {log:q} 2>&1'


# One view alone: other folds of the leak study, and the source's own test part.
use rule predict_captions as predict_view with:
    input:
        unpack(models_of),
        checkpoint=result(paths.CHECKPOINT, split="{fold}"),
        data=lambda wildcards: folds_of(wildcards.fold),
        features=lambda wildcards: features_of(settings.folds.dataset, wildcards.prefix),
    output:
        update(result(paths.PREDICTION)),
    log:
        log_of("predict_view"),
    benchmark:
        times_of("predict_view")
    resources:
        mem_mb=memory_of("predict_view"),
        runtime=minutes_of("predict_view"),
    params:
        job=prediction_job,
        views=lambda wildcards, output: views[wildcards.view],
        also=asked_together("predict_view", lambda cell: [paths.PREDICTION.format(**cell)]),
    message:
        "Answer the questions of {wildcards.fold} with {wildcards.prefix}, seed {wildcards.seed}: {params.views}"


every_view = tuple(map(view_suffix, asked_views(study)))


# All views of a study's own folds: models, features and questions are loaded once, and an image's prefix is run once.
use rule predict_view as predict with:
    output:
        [update(result(paths.PREDICTION, view=view)) for view in every_view],
    log:
        log_of("predict"),
    benchmark:
        times_of("predict")
    wildcard_constraints:
        prefix=one_of(grid.schedules),  # those of sweeps alone are asked held-out questions only, by `predict_view`
        fold=one_of(grid.folds),
    resources:
        mem_mb=memory_of("predict"),
        runtime=minutes_of("predict"),
    params:
        job=prediction_job,
        views=lambda wildcards, output: asked_views(study),
        also=asked_together("predict", lambda cell: STEPS["predict"].outputs({**cell, "view": every_view})),


ruleorder: predict > predict_view


rule predict_baseline:
    input:
        manifest=result(paths.DATA, dataset=settings.folds.dataset),
        data=lambda wildcards: folds_of(wildcards.fold),
        questions=ancient(result(paths.QUESTIONS, dataset=settings.folds.dataset)),
        features=result(paths.FEATURES, dataset=settings.folds.dataset, tag=""),
    output:
        result(paths.BASELINE_PREDICTION),
    log:
        log_of("predict_baseline"),
    localrule: True
    conda:
        ENVIRONMENT
    params:
        view=baseline_view,
    message:
        "Answer questions of {wildcards.fold} with {wildcards.baseline}: {params.view}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.evaluate.baselines --baseline {wildcards.baseline:q} --data {input.data:q}"
        " --features {input.features:q} --split {wildcards.fold:q} --view {params.view}"
        " --out {output:q} > {log:q} 2>&1"


rule probe:
    input:
        unpack(probed),
        manifest=result(paths.DATA, dataset=settings.folds.dataset),
        data=result(paths.FOLDS, dataset=settings.folds.dataset, cut=""),
        questions=ancient(result(paths.QUESTIONS, dataset=settings.folds.dataset)),
    output:
        result(paths.PROBE),
    log:
        log_of("probe"),
    benchmark:
        times_of("probe")
    conda:
        ENVIRONMENT
    params:
        job=lambda wildcards: jobs.ProbeJob.of(study, wildcards.representation, int(wildcards.seed)).text(),
    message:
        "Probe the image tokens of {wildcards.representation}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.evaluate.probe --job {params.job:q}"
        " --checkpoints {input.checkpoints:q} --data {input.data:q} --features {input.features:q}"
        " --vision-encoder {input.vision_encoder:q} --language-model {input.language_model:q} --out {output:q}"
        " > {log:q} 2>&1"


# Images of which one square after the other is grey: encoded once for all checkpoints with the same vision encoder.
rule encode_occluded:
    input:
        data=result(paths.FOLDS, dataset=settings.folds.dataset, cut=""),
        questions=ancient(result(paths.QUESTIONS, dataset=settings.folds.dataset)),
        features=result(paths.FEATURES),
        encoder=result(paths.MODEL, role="vision_encoder"),
    output:
        result(paths.OCCLUDED),
    log:
        log_of("encode_occluded"),
    benchmark:
        times_of("encode_occluded")
    conda:
        ENVIRONMENT
    threads: settings.runtime.threads
    resources:
        mem_mb=memory_of("encode_occluded"),
        runtime=minutes_of("encode_occluded"),
    params:
        settings=occlusion_settings,
    message:
        "Encode occluded images of {wildcards.dataset}{wildcards.tag}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.features.occluded --settings {params.settings:q}"
        " --data {input.data:q} --features {input.features:q} --encoder {input.encoder:q} --out {output:q}"
        " > {log:q} 2>&1"


rule occlude:
    input:
        checkpoint=result(paths.CHECKPOINT, split="{fold}"),
        data=result(paths.FOLDS, dataset=settings.folds.dataset, cut=""),
        questions=ancient(result(paths.QUESTIONS, dataset=settings.folds.dataset)),
        occluded=lambda wildcards: features_of(settings.folds.dataset, wildcards.prefix, paths.OCCLUDED),
        vision_encoder=trained_encoder,
        language_model=lambda wildcards: model_of("language_model", wildcards.prefix),
    output:
        result(paths.OCCLUSION),
    log:
        log_of("occlude"),
    benchmark:
        times_of("occlude")
    conda:
        ENVIRONMENT
    threads: settings.runtime.threads
    resources:
        mem_mb=memory_of("occlude"),
        runtime=minutes_of("occlude"),
    params:
        job=lambda wildcards: jobs.OcclusionJob.of(study).text(),
    message:
        "Occlude images for {wildcards.prefix}, {wildcards.fold}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} python -m triptych.evaluate.occlude --checkpoint {input.checkpoint:q}"
        " --job {params.job:q} --data {input.data:q} --occluded {input.occluded:q}"
        " --vision-encoder {input.vision_encoder:q} --language-model {input.language_model:q} --out {output:q} > {log:q} 2>&1"
