"""How long trainings and predictions take, what they need on disk, and what a comparison of them can find.

What is not known before data or models are there is taken from the configuration, and said to be so.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import harmonic_mean, median

from triptych.commands.cost import (
    GOLD,
    WEIGHT,
    features_gb,
    model_sizes,
    prediction_cost,
    questions,
    saved_gb,
    training_cost,
    tuned,
)
from triptych.commands.jobs import WORK, Job, JobState, seconds_taken
from triptych.config import paths
from triptych.config.grid import Checkpoint
from triptych.config.study import Study
from triptych.errors import TriptychError
from triptych.io.manifest import read_json

# For the minimum detectable effect, where no comparison of this study says better; see docs/evaluation.md.
RUN_SD = 2.8  # points between runs of the difference of two schedules: 2 points each
DISAGREE = 0.2  # share of the questions that one schedule answers right and the other does not
ALIKE = 0.02  # correlation of such differences on one image


@dataclass(frozen=True)
class Hours:
    """Estimated hours of trainings and predictions.

    Attributes:
        of_training: by prefix, of one training.
        of_prediction: by schedule, of the answers to one view.
        of_transfer: by schedule and data set, of the answers to the part of that data set that is asked.
        left: of all that is left.
        done: what finished ones took.
        rate: FLOP/s that the estimate assumes.
        measured: finished trainings that the rate is from; 0 where it is not.
        benched: name of the device that `triptych bench` measured, where the rate is from it.
        error: median relative error of the estimates of these, each from the others; None for fewer than two.
    """

    of_training: dict[str, float]
    of_prediction: dict[str, float]
    of_transfer: dict[tuple[str, str], float]
    left: float
    done: float
    rate: float
    measured: int
    benched: str | None
    error: float | None

    def of(self, job: Job) -> float:
        """Hours of one job, a training or a prediction."""
        if job.cell:
            return self.of_training[job.cell.prefix]
        once = self.of_transfer[job.arm, job.transfer] if job.transfer else self.of_prediction[job.arm]
        return once * (len(job.outputs) + GOLD)  # a file for each view, one with gold answers


def measured_tflops(study: Study) -> float | None:
    """Rate of matrix products on the study's GPUs that `triptych doctor` measured, in 10^12 operations per second."""
    try:
        rates = read_json(study.path(paths.DOCTOR))["rates"]
    except TriptychError:
        return None
    return max((round(found["gpu_tflops"], 1) for found in rates.values() if "gpu_tflops" in found), default=None)


def benched_rate(study: Study) -> tuple[float, str] | None:
    """Read the FLOP/s of training that `triptych bench` found, mean of both kinds of stages, and of which device.

    None where it was not run, or could not measure stages 2 and 3.

    Raises:
        TriptychError: its results file is damaged.
    """
    if not (file := study.path(paths.BENCH)).exists():
        return None
    found = read_json(file)
    parts = found.get("parts", {})
    rates = [parts.get(f"stage {name}", {}).get("plan_tflops") for name in ("2", "3")]
    if found.get("tiny") or not all(rates):
        return None
    return 1e12 * harmonic_mean(rates), parts.get("device", {}).get("device", "this machine")


def hours(study: Study, states: Sequence[JobState]) -> Hours:
    """Hours from FLOPs and a rate: of this study's finished trainings, else of the benchmark, else of the settings."""
    costs = {prefix: training_cost(study, Checkpoint(prefix, "", 0)) for prefix in study.grid.prefixes}
    answers = {arm: prediction_cost(study, arm) for arm in (*study.grid.schedules, *study.grid.swept)}
    asked = product(study.grid.schedules, study.settings.evaluation.datasets)
    others = {(arm, dataset): prediction_cost(study, arm, dataset) for arm, dataset in asked}
    trained = [state for state in states if state.job.cell]
    took = [
        (costs[state.job.cell.prefix].flops, seconds)
        for state in trained
        if state.state == "done" and (seconds := seconds_taken(state.job.times))
    ]
    assumed = (measured_tflops(study) or study.settings.plan.tflops) * 1e12 * study.settings.plan.utilisation
    rate, benched = (benched_rate(study) if not took else None) or (assumed, None)
    error = None
    if took:
        flops, seconds = (sum(column) for column in zip(*took, strict=True))
        rate = flops / seconds
        if len(took) > 1:
            guesses = [(own / ((flops - own) / (seconds - real)), real) for own, real in took]
            error = median(abs(guess / real - 1) for guess, real in guesses)
    of_training = {prefix: cost.flops / rate / 3600 for prefix, cost in costs.items()}
    of_prediction = {arm: cost.flops / rate / 3600 for arm, cost in answers.items()}
    of_transfer = {names: cost.flops / rate / 3600 for names, cost in others.items()}
    done = sum(real for _, real in took) / 3600
    found = Hours(of_training, of_prediction, of_transfer, 0.0, done, rate, len(took), benched, error)
    ahead = [state for state in states if state.state != "done" and state.job.rule in WORK]
    return replace(found, left=sum(found.of(state.job) * (1 - state.fraction) for state in ahead))


def disk_gb(study: Study) -> tuple[float, float]:
    """GB of vision features and of checkpoints, each saved twice while it trains, with its optimiser's state."""
    encoded = {}  # name of features -> GB; what is above the budget is computed on the fly
    for prefix in study.grid.prefixes:
        asked = study.settings.evaluation.datasets if prefix in study.grid.schedules else ()
        for name in (study.settings.folds.dataset, study.grid.stage_of(prefix).data, *asked):
            encoded[study.grid.features(name, prefix)] = features_gb(study, prefix, name)
    cells = Counter(cell.prefix for cell in study.grid.trainings)
    trained = 0.0
    for prefix, number in cells.items():
        model, lora = model_sizes(study, prefix), study.grid.settings_of(prefix).lora
        connector = 4 * (model.width * model.hidden + model.hidden**2)
        adapters = 4 * lora.rank * 2 * model.hidden * 22 * len(lora.target_modules)
        trained += number * (connector + (adapters if study.grid.has_trained(prefix, "lora") else 0))
    return sum(encoded.values()), 3 * trained / 1e9 + _tuned_gb(study, cells)


def _tuned_gb(study: Study, cells: Mapping[str, int]) -> float:
    """GB of models that train: of each checkpoint, and two saved states of each one that is under way."""
    weights = {prefix: sum(one.weights for one in tuned(study, prefix)) for prefix in cells}
    kept = sum(number * WEIGHT * weights[prefix] / 1e9 for prefix, number in cells.items())
    at_once = study.settings.plan.at_once
    states = [2 * min(number, at_once) * saved_gb(study, prefix) for prefix, number in cells.items()]
    return kept + max(states, default=0)


def fetched_gb(study: Study) -> dict[str, float]:
    """GB of images that are fetched out of archives on the hub by data set; of nested sizes, the largest alone."""
    largest: dict[str, tuple[float, str]] = {}
    for name in study.grid.used_datasets:
        if study.datasets[name].archive:
            base = name.rpartition("-")[0]
            largest[base] = max(largest.get(base, (0.0, "")), (study.datasets[name].fetched_gb, name))
    return {name: size for size, name in largest.values()}


def precision(
    study: Study, folds: int, seeds: int, run_sd: float = RUN_SD, disagree: float = DISAGREE
) -> tuple[float, float]:
    """Estimate the variance of a comparison's effect, in points squared, and its degrees of freedom.

    From the number of runs, folds, questions and images, as `statistics.two_way_clustered_t` adds the variances of runs
    and of questions.

    Args:
        study: the study.
        folds: different training parts.
        seeds: of each; two runs or more.
        run_sd: standard deviation between runs of the difference, in points.
        disagree: share of the questions that one schedule answers right and the other does not.
    """
    from triptych.evaluate.statistics import overlap_factor, satterthwaite

    number, images = questions(study, study.settings.folds.dataset)
    runs = folds * seeds
    if folds == 1:
        number, images = max(1, number // 6), max(2, images // 6)
    run_term = overlap_factor(runs, folds) * run_sd**2 / runs
    question_term = 100**2 * disagree * (1 + (number / images - 1) * ALIKE) / number
    variance, df = run_term + question_term, min(runs, images) - 1
    if folds == 1:
        df = float(satterthwaite(variance, run_term, question_term, runs, images))
    return variance, df


def detectable(study: Study) -> tuple[float, bool]:
    """Give the minimum detectable effect of a comparison in points, at 80 % power, and whether it is measured.

    Of the primary comparison. From this study's comparison where there is one: its first row. Otherwise as `precision`
    estimates it, with the variances assumed (RUN_SD, DISAGREE, ALIKE).
    """
    try:
        rows = read_json(study.path(paths.TABLE, table="comparison.json"))["comparisons"]
        if known := rows[0].get("detectable"):
            return known, True
    except (TriptychError, LookupError, TypeError):
        pass
    from triptych.evaluate.statistics import minimum_detectable_effect

    folds, seeds = study.settings.folds.number, len(study.settings.seeds)
    if folds * seeds < 2:
        return float("inf"), False
    variance, df = precision(study, folds, seeds)
    return minimum_detectable_effect(variance**0.5, df), False
