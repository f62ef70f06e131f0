"""What trainings and predictions cost in time and disk, and what a comparison of them can find.

What is not known before data or models are there is taken from the configuration, and said to be so.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import harmonic_mean, median

from triptych.commands.jobs import WORK, Job, JobState, seconds_taken
from triptych.config import paths
from triptych.config.datasets import Captions
from triptych.config.grid import Checkpoint
from triptych.config.study import Study
from triptych.errors import TriptychError
from triptych.io.manifest import read_json

# Of a training, in tokens: what stands in front of a question's image or behind it, and SLAKE's questions an image.
TEXT_TOKENS = {"questions": 14, "captions": 40}
QUESTIONS_PER_IMAGE = 11
UNKNOWN_SIZE = 1000  # images or questions of a data set of which nothing is said
PREDICTION = 0.65  # time of an answer, in samples of training: 17 against 11 a second, SmolLM2-135M on one core
# For the minimum detectable effect, where no comparison of this study says better; see docs/evaluation.md.
RUN_SD = 2.8  # points between runs of the difference of two schedules: 2 points each
DISAGREE = 0.2  # share of the questions that one schedule answers right and the other does not
ALIKE = 0.02  # correlation of such differences on one image
SIZES = {"b": 1e9, "m": 1e6}


@dataclass(frozen=True)
class Cost:
    """Samples and FLOPs of one training or prediction."""

    samples: float
    flops: float


@dataclass(frozen=True)
class Model:
    """What the estimates need of both models.

    Attributes:
        weights: parameters of the language model.
        hidden: size of its hidden states.
        image_tokens: of an image, before a connector pools them.
        width: of a vision feature.
        known: they are prepared; otherwise sizes come from the configuration's words.
    """

    weights: float
    hidden: int
    image_tokens: int
    width: int
    known: bool


def model_sizes(study: Study, prefix: str) -> Model:
    """Sizes of a prefix's models: of those that are prepared, else as their names say (TinyLlama-1.1B, patch16-384)."""
    behind = study.grid.prefixes[prefix]
    language, encoder = behind.settings.models.language_model, behind.settings.models.vision_encoder
    try:
        config = read_json(study.path(paths.MODEL_CONFIG, model=behind.language_model))
        folder = study.grid.features(study.settings.folds.dataset, prefix)
        features = read_json(study.path(paths.FEATURES, dataset=folder, tag=""))
        hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        keys = hidden * config["num_key_value_heads"] / config["num_attention_heads"]
        weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner)
        return Model(weights, hidden, features["shape"][0], features["shape"][1], True)
    except (TriptychError, KeyError):
        pass
    name = getattr(language, "repo", "") or "SmolLM2-135M"
    size = re.search(r"(\d+(?:\.\d+)?)([BM])\b", name, re.IGNORECASE)
    weights = float(size[1]) * SIZES[size[2].lower()] if size else 1e9
    patch = re.search(r"patch(\d+)-(\d+)", getattr(encoder, "repo", "") or "")
    tokens = (int(patch[2]) // int(patch[1])) ** 2 if patch else 49
    return Model(weights, 2048 if weights > 5e8 else 576, tokens, 768, False)


def questions(study: Study, dataset: str) -> tuple[int, int]:
    """Samples of a data set that are not its test part, and their images: counted, else as the configuration says."""
    described = study.datasets[dataset]
    parts = ("train", "validation")
    try:
        counts = read_json(study.path(paths.DATA, dataset=dataset))["counts"]
        return tuple(sum(counts[kind].get(part, 0) for part in parts) for kind in ("questions", "images"))
    except TriptychError:
        pass
    if isinstance(described, Captions):
        number = described.size if described.size < inf else UNKNOWN_SIZE
        return number, number
    expected = getattr(described, "expected", None) or {"train": UNKNOWN_SIZE, "validation": 0}
    number = sum(expected.get(part, 0) for part in parts)
    return number, max(1, number // QUESTIONS_PER_IMAGE)


def shown_tokens(study: Study, model: Model, prefix: str) -> float:
    """Image tokens of an image that the language model sees, which a connector may have averaged."""
    return model.image_tokens / (study.grid.settings_of(prefix).connector.pool or 1) ** 2


def training_cost(study: Study, cell: Checkpoint) -> Cost:
    """Samples that a training sees, and the FLOPs of these.

    2 x 2 x weights for each token, forward and for the gradient of the activations: frozen weights need no gradient.
    An image is computed once for all its questions in a step. Adapters, connector and attention are left out. Answers
    to the validation part, after each epoch and before the first, count as PREDICTION.
    """
    stage, model = study.grid.stage_of(cell.prefix), model_sizes(study, cell.prefix)
    number, images = questions(study, stage.data)
    described = study.datasets[stage.data]
    if isinstance(described, Captions):
        text, shared, aside = TEXT_TOKENS["captions"], 1.0, described.validation_fraction
    else:
        text, shared = TEXT_TOKENS["questions"], min(number / images, stage.batch_size)
        number *= 1 - 1 / study.settings.folds.number if study.settings.folds.number > 1 else 0.8
        aside = study.settings.folds.validation_fraction
    epochs, part = stage.epochs or 0, (1 - aside) * number
    asked = min(aside * number, study.settings.training.validation_limit or number) * (epochs + 1)
    seen = min(part, stage.max_samples or part) * epochs + PREDICTION * asked
    image = 0 if stage.blind else shown_tokens(study, model, cell.prefix) / max(1.0, shared)
    return Cost(seen, seen * 2 * 2 * model.weights * (image + text))


def prediction_cost(study: Study, prefix: str) -> Cost:
    """The same of the answers to one view of a fold's held-out part."""
    model = model_sizes(study, prefix)
    number, images = questions(study, study.settings.folds.dataset)
    held_out = min(number, study.settings.evaluation.max_questions or number) / max(2, study.settings.folds.number)
    tokens = shown_tokens(study, model, prefix) * images / number + TEXT_TOKENS["questions"]
    return Cost(held_out, held_out * PREDICTION * 2 * 2 * model.weights * tokens)


@dataclass(frozen=True)
class Hours:
    """Estimated hours of trainings and predictions.

    Attributes:
        of_training: by prefix, of one training.
        of_prediction: by schedule, of the answers to one view.
        left: of all that is left.
        done: what finished ones took.
        rate: FLOP/s that the estimate assumes.
        measured: finished trainings that the rate is from; 0 where it is not.
        benched: name of the device that `triptych bench` measured, where the rate is from it.
        error: median relative error of the estimates of these, each from the others; None for fewer than two.
    """

    of_training: dict[str, float]
    of_prediction: dict[str, float]
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
        return self.of_prediction[job.arm] * len(job.outputs)  # a file for each view


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
    answers = {arm: prediction_cost(study, arm) for arm in study.grid.schedules}
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
    done = sum(real for _, real in took) / 3600
    found = Hours(of_training, of_prediction, 0.0, done, rate, len(took), benched, error)
    ahead = [state for state in states if state.state != "done" and state.job.rule in WORK]
    return replace(found, left=sum(found.of(state.job) * (1 - state.fraction) for state in ahead))


def disk_gb(study: Study) -> tuple[float, float]:
    """GB of vision features and of checkpoints, each saved twice while it trains, with its optimiser's state."""
    width = 2 if study.settings.features.dtype == "bf16" else 4
    sizes = study.datasets
    encoded = {}  # name of features -> GB; what is above the budget is computed on the fly
    for prefix in study.grid.prefixes:
        model = model_sizes(study, prefix)
        for name in (study.settings.folds.dataset, study.grid.stage_of(prefix).data):
            known = isinstance(sizes[name], Captions) and sizes[name].size < inf
            images = sizes[name].size if known else questions(study, name)[1]
            bytes_each = model.image_tokens * model.width * width
            stored = images * bytes_each / 1e9
            encoded[study.grid.features(name, prefix)] = stored if stored <= study.settings.features.budget_gb else 0.0
    cells = Counter(cell.prefix for cell in study.grid.trainings)
    trained = 0.0
    for prefix, number in cells.items():
        model, lora = model_sizes(study, prefix), study.grid.settings_of(prefix).lora
        connector = 4 * (model.width * model.hidden + model.hidden**2)
        adapters = 4 * lora.rank * 2 * model.hidden * 22 * len(lora.target_modules)
        trained += number * (connector + (adapters if study.grid.trained_parts(prefix) == "end to end" else 0))
    return sum(encoded.values()), 3 * trained / 1e9


def fetched_gb(study: Study) -> dict[str, float]:
    """GB of images that are fetched out of archives on the hub by data set; of nested sizes, the largest alone."""
    largest: dict[str, tuple[float, str]] = {}
    for name in study.grid.used_datasets:
        if study.datasets[name].archive:
            base = name.rpartition("-")[0]
            largest[base] = max(largest.get(base, (0.0, "")), (study.datasets[name].fetched_gb, name))
    return {name: size for size, name in largest.values()}


def detectable(study: Study) -> tuple[float, bool]:
    """Give the minimum detectable effect of a comparison in points, at 80 % power, and whether it is measured.

    Of the primary comparison. From this study's comparison where there is one: its first row. Otherwise from the
    number of runs, folds, questions and images, with the run's and the questions' variances assumed (RUN_SD, DISAGREE,
    ALIKE), as `statistics.two_way_clustered_t` adds them.
    """
    try:
        rows = read_json(study.path(paths.TABLE, table="comparison.json"))["comparisons"]
        if known := rows[0].get("detectable"):
            return known, True
    except (TriptychError, LookupError, TypeError):
        pass
    from triptych.evaluate.statistics import minimum_detectable_effect, overlap_factor, satterthwaite

    number, images = questions(study, study.settings.folds.dataset)
    folds = study.settings.folds.number
    runs = folds * len(study.settings.seeds)
    if folds == 1:
        number, images = max(1, number // 6), max(2, images // 6)
    run_term = overlap_factor(runs, folds) * RUN_SD**2 / runs
    question_term = 100**2 * DISAGREE * (1 + (number / images - 1) * ALIKE) / number
    if runs < 2:
        return float("inf"), False
    variance, df = run_term + question_term, min(runs, images) - 1
    if folds == 1:
        df = float(satterthwaite(variance, run_term, question_term, runs, images))
    return minimum_detectable_effect(variance**0.5, df), False
