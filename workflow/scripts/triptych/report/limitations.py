"""What limits a study's conclusions, in sentences, from its own numbers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType

import pandas

from triptych.config.arms import CONTROLS
from triptych.config.settings import Settings
from triptych.config.study import Study
from triptych.report.answer import added_stages, listed, loses
from triptych.tables import schedules
from triptych.tables.verdicts import draws_warning

LOOKUP = "nearest-images"
BLIND = "majority-per-question"
DRAWN = (BLIND, LOOKUP, "classifier")  # beside schedules, by content

HIDDEN = 3  # points: a larger minimum detectable effect is a limitation of the study
MOST, FEW = 0.9, 10  # this share of the questions about fewer subjects than this is a limitation of the study
LOOKS = 2  # points: fewer gained on always the same answer are hardly any
ALIKE = 0.05  # this share of held-out images that look like trained ones is a limitation of the study


def limitations(
    study: Study,
    arms: pandas.DataFrame,
    comparison: Sequence[Mapping],
    lost: Sequence[Mapping],
    questions: Mapping[str, int] = MappingProxyType({}),
    versions: Sequence[str] = (),
    test_questions: int = 0,
    always: float | None = None,
    curves: pandas.DataFrame | None = None,
    overlaps: Sequence[Mapping] = (),
    subjects_named: bool = True,
) -> list[str]:
    """Say what limits the study's conclusions, in sentences, from its own numbers.

    Args:
        study: the study.
        arms: the table `schedules`.
        comparison: rows of `comparison.json`; none where one schedule stands alone.
        lost: rows of `evidence.lost`.
        questions: number of questions about each group of images that folds keep together.
        versions: of Triptych, that trained.
        test_questions: number of questions in the source's own test part.
        always: what the commoner one of yes and no scores on all yes/no questions, in per cent; None without any.
        curves: metrics of all epochs, as `stages.collect` gives them.
        overlaps: `fold_overlaps` of the audit.
        subjects_named: whether the data name the subjects of their images.
    """
    return [
        *_few_runs(study.settings),
        *_few_draws(study),
        *_more_samples(study, comparison),
        *_kept_epochs(study, comparison, curves),
        *_few_groups(questions),
        *_unknown_subjects(subjects_named),
        *_seen_in_training(overlaps),
        *_several_versions(versions),
        *_baselines_ahead(arms),
        *_no_more_than_always(arms, always),
        *_less_than_lookups(study),
        *_unused_images(lost),
        *_leaking_folds(study.settings),
        *_hidden_differences(comparison),
        *_unused_test_part(study, test_questions),
        *filter(None, [schedules.rules_differ(arms)]),
    ]


def _few_runs(settings: Settings) -> Iterator[str]:
    seeds, folds = len(settings.seeds), settings.folds.number
    if seeds == folds == 1:
        yield "One run of each schedule: how much a schedule varies from run to run is not known."
    elif seeds == 1:
        yield (
            "One seed: each schedule was trained once on each fold. How much a repetition with other random numbers "
            "would differ is not known."
        )
    if folds == 1:
        yield "One held-out part: how results vary with the images that are held out, and trained on, is not known."
    elif folds < 5:
        yield f"Only {folds} folds: the spread of runs is poorly known, so intervals are wide."


def _few_draws(study: Study) -> Iterator[str]:
    folds, seeds = study.settings.folds.number, len(study.settings.seeds)
    prefixes = list(dict.fromkeys(study.grid.drawn_once.values()))
    if warning := draws_warning({"folds": folds, "seeds": seeds}, prefixes):
        yield warning


def _more_samples(study: Study, comparison: Sequence[Mapping]) -> Iterator[str]:
    """Say where the schedules of the primary comparison differ in how much they were trained, too."""
    for row in comparison[:1]:
        if any(study.settings.stages[stage].train for stage in added_stages(study, row["first"], row["second"])):
            yield (
                f"`{row['first']}` was trained on more samples than `{row['second']}`: their comparison alone does not "
                "tell whether the kind of data or the amount of training matters."
            )


def _kept_epochs(study: Study, comparison: Sequence[Mapping], curves: pandas.DataFrame | None) -> Iterator[str]:
    """Say where validation chose other epochs of the last stage for one schedule of the primary comparison."""
    for row in comparison[:1] if curves is not None else ():
        arms = [row["first"], row["second"]]
        last = [prefix.settings.stages[prefix.stages[-1]] for prefix in (study.grid.prefixes[arm] for arm in arms)]
        if {stage.select for stage in last} != {"best"} or last[0].epochs != last[1].epochs:
            continue
        kept = []
        for arm in arms:
            own = curves[(curves["schedule"] == arm) & (curves["prefix"] == study.grid.lineage[arm][-1])]
            kept.append(own.dropna(subset=["kept_epoch"]).groupby(["split", "seed"])["kept_epoch"].first())
        first, second = kept[0].align(kept[1], join="inner")
        if differ := int((first != second).sum()):
            yield (
                f"In {differ} of {len(first)} runs, validation chose another epoch of the last stage for "
                f"`{row['first']}` than for `{row['second']}`: there, the two differ in the length of training, too."
            )


def _unknown_subjects(named: bool) -> Iterator[str]:
    if not named:
        yield (
            "The data name no subjects: images of one subject may be both trained on and held out, and intervals count "
            "them as independent."
        )


def _seen_in_training(overlaps: Sequence[Mapping]) -> Iterator[str]:
    """Say how many held-out images are of subjects that their fold trains on, or look like images that it trains on."""
    held_out = [row for row in overlaps if row["part"].endswith("held out")]
    if seen := sum(row.get("seen_subject_images") or 0 for row in held_out):
        yield (
            f"{seen} of {sum(row['images'] for row in held_out)} held-out images are of subjects that their fold "
            "trains on: scores are not those of new subjects."
        )
    alike = sum(row["identical_images"] + row["similar_images"] for row in held_out)
    images = sum(row["images"] for row in held_out)
    if images and alike > ALIKE * images:
        yield (
            f"{alike} of {images} held-out images ({100 * alike / images:.0f} %) look like an image that their fold "
            "trains on: on images unlike these, scores may be lower."
        )


def _few_groups(questions: Mapping[str, int]) -> Iterator[str]:
    """Say where most questions are about few subjects, however many there are."""
    total = sum(questions.values())
    sums = [*accumulate(sorted(questions.values(), reverse=True))]
    number = 1 + sum(most < MOST * total for most in sums)
    if sums and number < FEW:
        share = f"{100 * sums[number - 1] / total:.0f} % of the questions"
        yield (
            f"{number} of {len(questions)} subjects or groups of images have {share}: intervals for other subjects "
            "rest on these."
        )


def _several_versions(versions: Sequence[str]) -> Iterator[str]:
    if len(versions) > 1:
        yield f"Not all models were trained by the same version of Triptych: {', '.join(versions)}."


def _baselines_ahead(arms: pandas.DataFrame) -> Iterator[str]:
    reached = dict(zip(arms["arm"], arms["all_mean"], strict=True))
    trained = arms[arms["trained"]]
    best = trained["arm"].iloc[trained["all_mean"].argmax()]
    ahead = [name for name in arms["arm"][~arms["trained"]] if reached[name] >= reached[best]]
    if ahead:
        ahead.sort(key=lambda name: -reached[name])
        named = listed([f"`{name}` ({reached[name]:.1f} %)" for name in ahead])
        yield f"No schedule scores above {named}: the best is `{best}` with {reached[best]:.1f} %."


def _no_more_than_always(arms: pandas.DataFrame, always: float | None) -> Iterator[str]:
    """Say where schedules hardly score above one answer to all yes/no questions."""
    if always is None:
        return
    reached = dict(zip(arms["arm"], arms["yes_no_mean"], strict=True))
    for arm in arms["arm"][arms["trained"]]:
        if reached[arm] < always + LOOKS:
            yield (
                f"On yes/no questions `{arm}` scores {reached[arm]:.1f} %, and always the same answer, yes or no, "
                f"{always:.1f} %."
            )


def _less_than_lookups(study: Study) -> Iterator[str]:
    """Name the schedules that know less than look-ups do: all of their stages are limited to a part of the data."""
    less = []
    for arm in study.grid.schedules:
        prefix = study.grid.prefixes[arm]
        stages = [prefix.settings.stages[name] for name in prefix.stages]
        folded = [one for one in stages if one.data == study.settings.folds.dataset and one.train]
        if folded and all(one.fraction < 1 or one.max_samples for one in folded):
            less.append(f"`{arm}`")
    if less:
        yield (
            "Look-ups and classifiers answer from the whole training part of a fold; all stages on it of "
            f"{', '.join(less)} are limited by `fraction` or `max_samples`."
        )


def _unused_images(lost: Sequence[Mapping]) -> Iterator[str]:
    for view, unmoved in ((view, control.unmoved) for view, control in CONTROLS.items() if control.unmoved):
        names = [f"`{row['arm']}`" for row in lost if row["view"] == view and not loses(row)]
        if names:
            yield f"{listed(names)} {'is' if len(names) == 1 else 'are'} not shown to lose points {unmoved}."
    if {row["view"] for row in lost} == {"blank"}:
        yield (
            "Of other images, a grey one alone was shown, which is unlike all that was trained on: use of the image is "
            "not shown by it (`evaluation.controls: [swapped]`)."
        )


def _leaking_folds(settings: Settings) -> Iterator[str]:
    if settings.folds.group == "row":
        yield "Folds are assigned by row: images of held-out questions occur in training, so all scores are too high."


def _hidden_differences(comparison: Sequence[Mapping]) -> Iterator[str]:
    hidden = [row for row in comparison if row.get("detectable") and row["detectable"] > HIDDEN]
    if len(hidden) > 3:
        least, most = (choose(row["detectable"] for row in hidden) for choose in (min, max))
        yield (
            f"In {len(hidden)} of {len(comparison)} comparisons the minimum detectable effect at 80 % power is "
            f"{least:.1f} to {most:.1f} points; smaller differences are missed more often."
        )
        return
    for row in hidden:
        yield (
            f"`{row['first']}` against `{row['second']}`: the minimum detectable effect at 80 % power is "
            f"{row['detectable']:.1f} points; smaller differences are missed more often."
        )


def _unused_test_part(study: Study, number: int) -> Iterator[str]:
    if number and not list((study.results / "predictions").glob("*/*/*-test.parquet")):
        yield f"No schedule has been asked the source's own test part yet ({number:,} questions; `snakemake test`)."
