# What rules ask for: paths, input functions, the jobs of steps, and the tables that a study delivers.


def result(pattern, **known):
    """A path below the results folder; `pattern` is one of `triptych.config.paths`."""
    return f"<results>/{paths.fill(pattern, **known)}"


def log_of(rule):
    """The log of a rule's jobs."""
    return result(STEPS[rule].log)


def times_of(rule):
    """Where Snakemake notes time and memory of a rule's jobs."""
    return result(STEPS[rule].benchmark)


@cache
def requests():
    """What steps on GPUs ask a cluster for. A function, because Snakemake's options are known after rules are read."""
    options = workflow.group_settings
    return Requests(study, Grouping(options.overwrite_groups, options.group_components))


def memory_of(rule):
    """MB of the jobs of a rule; local runs ask for it, too, which matters with `--resources mem_mb=...` alone."""
    return lambda wildcards, attempt: requests().memory(rule, wildcards, attempt)


def minutes_of(rule):
    """Time limit of the jobs of a rule."""
    return lambda wildcards, attempt: requests().minutes(rule, wildcards, attempt)


def checkpoint_file(cell, pattern=paths.CHECKPOINT):
    """A file of one checkpoint."""
    return result(pattern, **vars(cell))


def all_checkpoints(pattern, prefixes=None, leak=False):
    """Input function: a file of every checkpoint, or of those of the prefixes given; with the leak study's if asked.

    A function, as `predictions` and others are: lists of the whole grid would be read at the start of every job.
    """
    return lambda wildcards: [
        checkpoint_file(cell, pattern)
        for cell in (grid.trainings if leak else grid.checkpoints)
        if prefixes is None or cell.prefix in prefixes
    ]


@cache
def model_of(role, prefix):
    """The vision encoder or the language model of a prefix."""
    return result(paths.MODEL, role=getattr(grid.prefixes[prefix], role), tag="")


def trained_encoder(wildcards, prefix=None):
    """The vision encoder of a prefix that has trained it, and so encodes images itself; nothing for others."""
    prefix = prefix or wildcards.prefix
    return model_of("vision_encoder", prefix) if grid.has_trained(prefix, "vision_encoder") else []


@cache
def features_of(dataset, prefix, pattern=paths.FEATURES):
    """A data set's features by the encoder of a prefix, or those of its occluded images."""
    return result(pattern, dataset=grid.features(dataset, prefix), tag="")


@cache
def folds_of(fold):
    """The file that says what a fold holds out."""
    return result(paths.FOLDS, dataset=settings.folds.dataset, cut=cut_of(fold))


def stage_data(wildcards):
    """The data set of the stage that a prefix ends on."""
    return grid.stage_of(wildcards.prefix).data


def dataset_settings(wildcards):
    """The settings of a data set."""
    return jobs.dataset_text(study, wildcards.dataset)


def listed_files(wildcards):
    """Hashes of the local tables that a data set names, so that a change of them is noticed."""
    return jobs.tables_text(study, wildcards.dataset)


def cell(wildcards):
    """The cell of the grid that a checkpoint's wildcards name."""
    return Checkpoint(wildcards.prefix, wildcards.split, int(wildcards.seed))


def training_data(wildcards):
    """Manifest and features of the stage's data set, and the folds where the split is one."""
    dataset = stage_data(wildcards)
    files = {
        "data": result(paths.DATA, dataset=dataset),
        "questions": ancient(result(paths.QUESTIONS, dataset=dataset)),
        "features": features_of(dataset, wildcards.prefix),
    }
    if is_shared(wildcards.split):
        files["audit"] = ancient(result(paths.AUDIT))  # it fails where held-out images would be seen
    else:
        files["folds"] = folds_of(wildcards.split)
    return files


def parent_manifest(wildcards):
    """The checkpoint that this stage starts from; nothing for a first stage, which starts from a fresh connector."""
    parent = grid.parent(cell(wildcards))
    return [] if parent is None else checkpoint_file(parent)


def chain_length(wildcards):
    """A training's priority: how many trainings the longest chain has that begins with it."""
    return trainings_to_come(grid, wildcards.prefix)


def training_job(wildcards):
    """The settings of a training: a change of them, and of them alone, trains again."""
    return jobs.training_text(study, cell(wildcards))


def prediction_job(wildcards):
    """The settings of a prediction, whatever it is asked."""
    return jobs.prediction_text(study, HELD_OUT)


def asked_together(rule, answers):
    """Parameter of predictions: what else of this job of the cluster is asked in the same process, with equal models.

    Args:
        rule: name of the rule.
        answers: gives, from wildcards, the paths of the files of answers below the results folder.
    """

    def options(wildcards, output):  # with `output`, it is no setting that Snakemake records
        together = json.loads(os.environ.get(workflow_hooks.TOGETHER, "[]"))
        members = [others for name, others in together if name.endswith(rule)]
        own, found = grid.prefixes[wildcards.prefix], []
        results = Path(output[0]).parents[STEPS[rule].output.count("/")]
        for other in members:
            models = grid.prefixes[other["prefix"]]
            alike = (models.vision_encoder, models.language_model) == (own.vision_encoder, own.language_model)
            same = all(other.get(name) == wildcards.get(name) for name in ("fold", "seed", "view", "dataset", "part"))
            if alike and same and other["prefix"] != wildcards.prefix:
                files = [paths.CHECKPOINT.format(split=other["fold"], **other), *answers(other)]
                found += ["--also", *(str(results / file) for file in files)]
        return shlex.join(found)

    return options


def occlusion_settings(wildcards):
    """The settings of occlusion; a function, because most studies have none."""
    return settings.evaluation.occlusion.model_dump_json()


def baseline_view(wildcards):
    """What a baseline is asked; without a limit the view alone, which is what Snakemake recorded of finished studies."""
    return views[wildcards.view] + limit_option()


def limit_option():
    """The limit of baselines as an option; nothing where there is none."""
    limit = settings.evaluation.max_questions
    return f" --limit {limit}" if limit else ""


def shared_and_asked():
    """The data sets of shared stages; behind them, as a further option, those that nothing trains on, with the part asked.

    Without the latter it is what Snakemake recorded of finished studies.
    """
    named = [word for pair in settings.evaluation.datasets.items() for word in pair]
    shared = [name for name in grid.training_datasets if name != settings.folds.dataset]
    return [*shared, *(["--asked", *named] if named else [])]


def transfer_baseline_data(wildcards):
    """Data and features of what a baseline is trained on: a fold, or the other data set's own training part."""
    own = wildcards.split == SHARED
    trained = wildcards.dataset if own else settings.folds.dataset
    found = {
        "manifest": result(paths.DATA, dataset=trained),
        "data": result(paths.DATA, dataset=trained) if own else folds_of(wildcards.split),
        "questions": ancient(result(paths.QUESTIONS, dataset=trained)),
        "features": result(paths.FEATURES, dataset=trained, tag=""),
        "audit": ancient(result(paths.AUDIT)),
    }
    if not own:
        found["asked"] = result(paths.DATA, dataset=wildcards.dataset)
        found["asked_features"] = result(paths.FEATURES, dataset=wildcards.dataset, tag="")
    return found


def transfer_answers(wildcards):
    """Every answer to a data set: of all schedules and baselines."""
    return [
        result(path)
        for rule in ("predict_transfer", "predict_transfer_baseline")
        for values in EACH[STEPS[rule].each](study)
        if values["dataset"] == wildcards.dataset
        for path in STEPS[rule].outputs(values)
    ]


def models_of(wildcards):
    """Both models of a prefix."""
    return {role: model_of(role, wildcards.prefix) for role in ROLES}


def probed(wildcards):
    """The checkpoints of a representation, one for every split, and its models; what is not trained has the base's."""
    name = grid.representations[wildcards.representation].of
    trained = name in grid.prefixes
    cells = [Checkpoint(name, split, int(wildcards.seed)) for split in grid.splits(name)] if trained else []
    like = name if trained else grid.schedules[0]
    return {
        "checkpoints": [checkpoint_file(cell) for cell in cells],
        "features": features_of(settings.folds.dataset, like),
        "vision_encoder": trained_encoder(wildcards, name) if trained else [],
        "language_model": model_of("language_model", like),
    }


def predictions(view, arms, folds=None):
    """Input function: files of the answers of schedules or baselines, of every fold (or of those given) and seed."""
    suffix = view_suffix(view)
    return lambda wildcards: [
        path
        for arm in arms
        for fold in folds or grid.folds
        for path in (
            [result(paths.BASELINE_PREDICTION, baseline=arm, fold=fold, view=suffix)]
            if arm in BASELINES
            else [result(paths.PREDICTION, prefix=arm, fold=fold, seed=seed, view=suffix) for seed in settings.seeds]
        )
    ]


def kept_answers(wildcards):
    """Every record that tables were made of: they can be made again as long as all are there."""
    rules = ("predict", "predict_view", "predict_captions", "predict_baseline", "probe")
    rules += ("predict_transfer", "predict_transfer_baseline", "occlude")
    steps = [STEPS[rule] for rule in rules]
    return [result(path) for step in steps for values in EACH[step.each](study) for path in step.outputs(values)]


def tables(pattern, *names):
    """Tables in their three forms."""
    return [result(pattern, table=f"{name}.{kind}") for name in names for kind in ("csv", "md", "tex")]


occlusions = [result(paths.OCCLUSION, **values) for values in EACH["occlusion"](study)]
probes = [result(paths.PROBE, **values) for values in EACH["probe"](study)]
captioned = [result(paths.CAPTION_PREDICTION, **values) for values in EACH["captions"](study)]

# Tables of each data set that nothing trains on; named by it, and so no tables of the study's own.
transfer_tables = [
    result(paths.TRANSFER_TABLE, table=f"{name}.{kind}")
    for name in settings.evaluation.datasets
    for kind in ("csv", "md", "tex", "json")
]

# What a study delivers as tables of answers.
main_tables = ["schedules", "above_lookups", "by_content", *(["controls"] if settings.evaluation.controls else [])]
final_tables = tables(paths.TABLE, *main_tables, "calibration")
for name, there in (
    ("comparison.md", len(grid.schedules) > 1),
    ("comparison_by_type.md", len(grid.schedules) > 1),
    ("probe.md", probes),
    ("captions.md", captioned),
    ("occlusion.md", occlusions),
    ("leak.md", grid.leak_splits),
    ("scaling.md", grid.sweeps),
):
    if there:
        final_tables.append(result(paths.TABLE, table=name))
