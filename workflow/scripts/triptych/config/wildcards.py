"""What there are jobs for: the values of the wildcards of every rule's jobs, for rules, status and plan alike."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product

from triptych.config.arms import BASELINES, HELD_OUT, PRE_PROJECTION, view_suffix
from triptych.config.grid import SHARED, Grid, cut_of
from triptych.config.study import Study


def _other_splits(study: Study) -> list[str]:
    """Folds of the leak study that are not the study's own."""
    splits = study.grid.leak_splits.values()
    return [split for names in splits for split in names if split not in study.grid.folds]


def _cuts(study: Study) -> Iterator[dict[str, object]]:
    cuts = dict.fromkeys(["", *map(cut_of, _other_splits(study))])
    return ({"dataset": study.settings.folds.dataset, "cut": cut} for cut in cuts)


def asked_views(study: Study) -> tuple[str, ...]:
    """Name the views that every finished schedule is asked, in one job for each fold and seed."""
    return (HELD_OUT, *study.settings.evaluation.controls)


def _predictions(study: Study) -> Iterator[dict[str, object]]:
    views = tuple(map(view_suffix, asked_views(study)))
    for prefix, fold, seed in product(study.grid.schedules, study.grid.folds, study.settings.seeds):
        yield {"prefix": prefix, "fold": fold, "seed": seed, "view": views}


def _single_predictions(study: Study) -> Iterator[dict[str, object]]:
    leak = study.settings.evaluation.leak
    for cell in study.grid.trainings:
        if leak and cell.prefix in leak.schedules and cell.split not in study.grid.folds:
            yield {"prefix": cell.prefix, "fold": cell.split, "seed": cell.seed, "view": view_suffix(HELD_OUT)}
    for prefix, fold, seed in product(study.grid.swept, study.grid.folds, study.settings.seeds):
        yield {"prefix": prefix, "fold": fold, "seed": seed, "view": view_suffix(HELD_OUT)}


def _baselines(study: Study) -> Iterator[dict[str, object]]:
    for name, baseline in BASELINES.items():
        for fold in [*study.grid.folds, *(_other_splits(study) if baseline.leak_study else [])]:
            yield {"baseline": name, "fold": fold, "view": ""}


def _transfers(study: Study) -> Iterator[dict[str, object]]:
    asked = study.settings.evaluation.datasets.items()
    each = (asked, study.grid.schedules, study.grid.folds, study.settings.seeds)
    for (dataset, part), prefix, fold, seed in product(*each):
        yield {"dataset": dataset, "part": part, "prefix": prefix, "fold": fold, "seed": seed}


def _transfer_baselines(study: Study) -> Iterator[dict[str, object]]:
    for (dataset, part), (name, baseline) in product(study.settings.evaluation.datasets.items(), BASELINES.items()):
        for split in [*study.grid.folds, *([SHARED] if baseline.in_domain else [])]:
            yield {"dataset": dataset, "part": part, "baseline": name, "split": split}


def _captions(study: Study) -> Iterator[dict[str, object]]:
    if study.settings.evaluation.captions:
        draws = [split.removeprefix(SHARED) for split in study.grid.shared_splits]
        prefixes = [prefix for prefix in study.grid.main_prefixes if prefix in study.grid.shared_prefixes]
        for prefix, draw, seed in product(prefixes, draws, study.settings.seeds):
            yield {"prefix": prefix, "draw": draw, "seed": seed}


def _probes(study: Study) -> Iterator[dict[str, object]]:
    # Where rows are cut instead of images, every image has been seen, so there are no probes.
    if study.settings.evaluation.probe and study.settings.folds.group != "row":
        for name in study.grid.representations:
            for seed in study.settings.seeds[:1] if name == PRE_PROJECTION else study.settings.seeds:
                yield {"representation": name, "seed": seed}


def seeing(study: Study) -> list[str]:
    """Name the schedules whose last stage sees images."""
    return [prefix for prefix in study.grid.schedules if not study.grid.stage_of(prefix).blind]


def _occlusions(study: Study) -> Iterator[dict[str, object]]:
    if study.settings.evaluation.occlusion:
        for prefix, fold, seed in product(seeing(study), study.grid.folds, study.settings.seeds):
            yield {"prefix": prefix, "fold": fold, "seed": seed}


def _occluded(study: Study) -> Iterator[dict[str, object]]:
    dataset = study.settings.folds.dataset
    names = {study.grid.features(dataset, str(values["prefix"])) for values in _occlusions(study)}
    return ({"dataset": name, "tag": ""} for name in sorted(names))


# What there is a job for -> the values of its wildcards.
EACH: dict[str, Callable[[Study], Iterable[dict[str, object]]]] = {
    "study": lambda study: [{}],
    "data set": lambda study: ({"dataset": name} for name in study.grid.used_datasets),
    "shard": lambda study: (
        {"dataset": name, "scatteritem": f"{number}-of-{study.settings.shards}"}
        for name in study.grid.used_datasets
        for number in range(1, study.settings.shards + 1)
    ),
    "kind of folds": _cuts,
    "model": lambda study: ({"role": name, "tag": ""} for name in study.grid.models),
    "features": lambda study: ({"dataset": name, "tag": ""} for name in study.grid.used_features),
    "training": lambda study: (vars(cell) for cell in study.grid.trainings),
    "prediction": _predictions,
    "prediction of one view": _single_predictions,
    "captions": _captions,
    "baseline": _baselines,
    "transfer": _transfers,
    "transfer baseline": _transfer_baselines,
    "occluded features": _occluded,
    "occlusion": _occlusions,
    "probe": _probes,
}


def trainings_to_come(grid: Grid, prefix: str) -> int:
    """Count the trainings of the longest chain that begins with one of `prefix`, itself included."""
    before = len(grid.prefixes[prefix].before)
    ends = [len(way.before) for end, way in grid.prefixes.items() if prefix in (*way.before, end)]
    return max(ends) - before + 1
