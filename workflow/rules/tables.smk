# Tables, and the comparisons of schedules, from records alone.


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


# The source's own test part is asked only by `snakemake test`, once everything else is decided. What is answered stays.
use rule tabulate as tabulate_test with:
    input:
        predictions(TEST, grid.schedules),
        predictions(TEST, BASELINES),
    output:
        report(
            tables(paths.TEST_TABLE, "schedules", "above_lookups", "by_content"),
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


rule test:
    input:
        result(paths.TEST_TABLE, table="schedules.csv"),
        [result(paths.TEST_TABLE, table="comparison.md")] if len(grid.schedules) > 1 else [],
    message:
        "The test part is scored"
