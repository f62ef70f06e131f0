# Evaluation: answers of finished schedules and of untrained baselines; then the tables, from these records alone.
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


rule tabulate_occlusion:
    input:
        occlusions,
    output:
        report(
            tables(paths.TABLE, "occlusion"),
            caption="../report/occlusion.rst",
            category="Tables",
            subcategory="Occlusion",
        ),
    log:
        "<results>/logs/tabulate_occlusion.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        schedules=seeing(study),
        out=subpath(output[0], parent=True),
    message:
        "Write the table of occlusion"
    shell:
        "python -m triptych.tables.occlusion --occlusions {input:q} --schedules {params.schedules:q}"
        " --out {params.out:q} > {log:q} 2>&1"


rule tabulate:
    input:
        predictions(HELD_OUT, grid.schedules),
        predictions(HELD_OUT, BASELINES),
        [predictions(view, grid.schedules) for view in settings.evaluation.controls],
    output:
        [
            report(
                table,
                caption=f"../report/{Path(table).stem}.rst",
                category="Tables",
                subcategory=Path(table).stem.replace("_", " ").capitalize(),
            )
            for table in tables(paths.TABLE, *main_tables)
        ],
    log:
        "<results>/logs/tabulate.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        schedules=grid.schedules,
        baselines=list(BASELINES),
        view=HELD_OUT,
        out=subpath(output[0], parent=True),
    message:
        "Write the tables of schedules, baselines and controls"
    shell:
        "python -m triptych.tables.schedules --predictions {input:q} --view {params.view:q}"
        " --schedules {params.schedules:q} --baselines {params.baselines:q} --out {params.out:q} > {log:q} 2>&1"


# The source's own test part is asked only by `snakemake test`, once everything else is decided. What is answered stays.
use rule tabulate as tabulate_test with:
    input:
        predictions(TEST, grid.schedules),
        predictions(TEST, BASELINES),
    output:
        report(
            tables(paths.TEST_TABLE, "schedules", "by_content"),
            caption="../report/test.rst",
            category="Tables",
            subcategory="Test part",
        ),
    log:
        "<results>/logs/tabulate_test.log",
    params:
        schedules=grid.schedules,
        baselines=list(BASELINES),
        view=TEST,
        out=subpath(output[0], parent=True),
    message:
        "Write the tables of the test part"


rule test:
    input:
        result(paths.TEST_TABLE, table="schedules.csv"),
        [result(paths.TEST_TABLE, table="comparison.md")] if len(grid.schedules) > 1 else [],
    message:
        "The test part is scored"


rule compare_schedules:
    input:
        predictions(HELD_OUT, grid.schedules),
    output:
        report(
            multiext(result(paths.TABLE, table="comparison"), ".csv", ".md", ".tex", ".json"),
            caption="../report/comparison.rst",
            category="Tables",
            subcategory="Comparison",
        ),
        report(
            tables(paths.TABLE, "comparison_by_type"),
            caption="../report/comparison_by_type.rst",
            category="Tables",
            subcategory="Comparison",
        ),
    log:
        "<results>/logs/compare_schedules.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        schedules=grid.compared,
        drawn=canonical_json(grid.drawn_once),
        margin=settings.evaluation.equivalence_margin,
        out=subpath(output[0], parent=True),
    message:
        "Compare the first schedule with each of the others"
    shell:
        "python -m triptych.tables.comparison --predictions {input:q} --schedules {params.schedules:q}"
        " --drawn-once {params.drawn:q} --equivalence-margin {params.margin:q} --out {params.out:q} > {log:q} 2>&1"


use rule compare_schedules as compare_test with:
    input:
        predictions(TEST, grid.schedules),
    output:
        report(
            [
                *multiext(result(paths.TEST_TABLE, table="comparison"), ".csv", ".md", ".tex", ".json"),
                *tables(paths.TEST_TABLE, "comparison_by_type"),
            ],
            caption="../report/test.rst",
            category="Tables",
            subcategory="Test part",
        ),
    log:
        "<results>/logs/compare_test.log",
    message:
        "Compare the first schedule with each of the others on the test part"


rule tabulate_probe:
    input:
        probes=probes,
        answers=predictions(HELD_OUT, grid.schedules),
    output:
        csv=report(
            result(paths.TABLE, table="probe.csv"),
            caption="../report/probe.rst",
            category="Tables",
            subcategory="Probes",
        ),
        tables=report(
            multiext(result(paths.TABLE, table="probe"), ".md", ".tex"),
            caption="../report/probe.rst",
            category="Tables",
            subcategory="Probes",
        ),
    log:
        "<results>/logs/tabulate_probe.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        tokens=settings.evaluation.probe.tokens if settings.evaluation.probe else "mean",
        order=list(grid.representations),
        shared=grid.originals,
        references=canonical_json({name: grid.reference(name) for name in grid.representations}),
        ways=canonical_json({prefix: grid.trained_parts(prefix) for prefix in grid.prefixes}),
    message:
        "Write the table of the probes"
    shell:
        "python -m triptych.tables.probes --probes {input.probes:q} --answers {input.answers:q}"
        " --tokens {params.tokens} --order {params.order:q} --shared {params.shared:q}"
        " --references {params.references:q} --ways {params.ways:q} --csv {output.csv:q}"
        " > {log:q} 2>&1"


rule tabulate_leak:
    input:
        [
            predictions(HELD_OUT, [name for name, baseline in BASELINES.items() if baseline.leak_study], folds)
            for folds in grid.leak_splits.values()
        ],
        [
            predictions(HELD_OUT, settings.evaluation.leak.schedules, folds)
            for folds in grid.leak_splits.values()
            if settings.evaluation.leak.schedules
        ],
    output:
        report(
            multiext(result(paths.TABLE, table="leak"), ".csv", ".md", ".tex"),
            caption="../report/leak.rst",
            category="Tables",
            subcategory="Leak study",
        ),
    log:
        "<results>/logs/tabulate_leak.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        splits=canonical_json(list(grid.leak_splits.items())),
        out=subpath(output[0], parent=True),
    message:
        "Write the table of what leaking folds add"
    shell:
        "python -m triptych.tables.leakage --predictions {input:q} --splits {params.splits:q}"
        " --out {params.out:q} > {log:q} 2>&1"


rule tabulate_scaling:
    input:
        predictions(HELD_OUT, dict.fromkeys(arm for arms in grid.sweeps.values() for arm in arms.values())),
    output:
        report(
            tables(paths.TABLE, "scaling"),
            caption="../report/scaling.rst",
            category="Tables",
            subcategory="Scaling",
        ),
    log:
        "<results>/logs/tabulate_scaling.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        sweeps=jobs.sweeps_text(study),
        drawn=canonical_json(grid.drawn_once),
        out=subpath(output[0], parent=True),
    message:
        "Write the table of the curves of scale"
    shell:
        "python -m triptych.tables.scaling --predictions {input:q} --sweeps {params.sweeps:q}"
        " --drawn-once {params.drawn:q} --out {params.out:q} > {log:q} 2>&1"


rule tabulate_calibration:
    input:
        predictions(HELD_OUT, grid.schedules),
    output:
        report(
            tables(paths.TABLE, "calibration"),
            caption="../report/calibration.rst",
            category="Tables",
            subcategory="Calibration",
        ),
    log:
        "<results>/logs/tabulate_calibration.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        schedules=grid.schedules,
        out=subpath(output[0], parent=True),
    message:
        "Write the table of calibration"
    shell:
        "python -m triptych.tables.calibration --predictions {input:q} --schedules {params.schedules:q}"
        " --out {params.out:q} > {log:q} 2>&1"


rule tabulate_captions:
    input:
        captioned,
    output:
        report(
            multiext(result(paths.TABLE, table="captions"), ".csv", ".md", ".tex"),
            caption="../report/captions.rst",
            category="Tables",
            subcategory="Captions",
        ),
    log:
        "<results>/logs/tabulate_captions.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        out=subpath(output[0], parent=True),
    message:
        "Write the table of captions"
    shell:
        "python -m triptych.tables.captions --predictions {input:q} --out {params.out:q} > {log:q} 2>&1"
