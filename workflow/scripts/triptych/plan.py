"""What a study will cost and what it can show, before anything trains: `python -m triptych.plan`, `snakemake plan`.

Jobs that are done and left, trainings that schedules share, hours, disk, and the smallest difference that the grid can
find. Nothing is run and nothing is fetched: what is not known before data or models are there is taken from the
configuration, and said to be so.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from triptych import grid
from triptych.display import duration
from triptych.retraining import short_reason
from triptych.settings import Captions, Settings
from triptych.status import WORK, Report, Step, seconds_taken, survey
from triptych.storage import TriptychError, read_json, run_step
from triptych.study import read_study, results_folder, settings_text

# Of a training, in tokens: what stands in front of a question's picture or behind it, and SLAKE's questions a picture.
TEXT_TOKENS = {"questions": 14, "captions": 40}
QUESTIONS_A_PICTURE = 11
PREDICTION = 0.65  # time of an answer, in samples of training: 17 against 11 a second, SmolLM2-135M on one core
# For the minimum detectable effect, where no comparison of this study says better; see docs/evaluation.md.
RUN_SD = 2.8  # points between runs of the difference of two schedules: 2 points each
DISAGREE = 0.2  # share of the questions that one schedule answers right and the other does not
ALIKE = 0.02  # correlation of such differences on one picture
SNAKEFILE = Path(__file__).parents[3] / "Snakefile"
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
        image_tokens: of a picture, before a connector pools them.
        width: of a vision feature.
        known: they are prepared; otherwise sizes come from the configuration's words.
    """

    weights: float
    hidden: int
    image_tokens: int
    width: int
    known: bool


def model_sizes(settings: Settings, results: Path, prefix: str) -> Model:
    """Sizes of a prefix's models: of those that are prepared, else as their names say (TinyLlama-1.1B, patch16-384)."""
    behind = grid.prefixes(settings)[prefix]
    language, encoder = behind.settings.models.language_model, behind.settings.models.vision_encoder
    try:
        config = read_json(results / f"models/{behind.language_model}/config.json")
        folder = grid.features(settings, settings.folds.dataset, prefix)
        features = read_json(results / f"features/{folder}/manifest.json")
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


def questions(settings: Settings, results: Path, dataset: str) -> tuple[int, int]:
    """Samples of a data set that are not its test part, and their pictures: counted, else as the configuration says."""
    described = settings.expanded_datasets()[dataset]
    parts = ("train", "validation")
    try:
        counts = read_json(results / f"data/{dataset}/manifest.json")["counts"]
        return tuple(sum(counts[kind].get(part, 0) for part in parts) for kind in ("questions", "images"))
    except TriptychError:
        pass
    if isinstance(described, Captions):
        return described.sizes[0], described.sizes[0]
    expected = getattr(described, "expected", None) or {"train": 1000, "validation": 0}
    number = sum(expected.get(part, 0) for part in parts)
    return number, max(1, number // QUESTIONS_A_PICTURE)


def shown_tokens(settings: Settings, model: Model, prefix: str) -> float:
    """Image tokens of a picture that the language model sees, which a connector may have averaged."""
    return model.image_tokens / (grid.settings_of(settings, prefix).connector.pool or 1) ** 2


def training_cost(settings: Settings, results: Path, cell: grid.Checkpoint) -> Cost:
    """Samples that a training sees, and the FLOPs of these.

    2 x 2 x weights for each token, forward and for the gradient of the activations: frozen weights need no gradient.
    An image is computed once for all its questions in a step. Adapters, connector and attention are left out. Answers
    to the validation part, after each epoch and before the first, count as PREDICTION.
    """
    stage, model = grid.stage_of(settings, cell.prefix), model_sizes(settings, results, cell.prefix)
    number, pictures = questions(settings, results, stage.data)
    described = settings.expanded_datasets()[stage.data]
    if isinstance(described, Captions):
        text, shared, aside = TEXT_TOKENS["captions"], 1.0, described.validation_fraction
    else:
        number *= 1 - 1 / settings.folds.number if settings.folds.number > 1 else 0.8
        text, shared = TEXT_TOKENS["questions"], min(number / pictures, stage.batch_size)
        aside = settings.folds.validation_fraction
    epochs = stage.epochs or 1
    asked = min(aside * number, settings.training.validation_limit or number) * (epochs + 1)
    seen = (stage.samples or (1 - aside) * number * epochs) + PREDICTION * asked
    image = 0 if stage.blind else shown_tokens(settings, model, cell.prefix) / max(1.0, shared)
    return Cost(seen, seen * 2 * 2 * model.weights * (image + text))


def prediction_cost(settings: Settings, results: Path, prefix: str) -> Cost:
    """The same of one prediction of a fold's held-out part."""
    model = model_sizes(settings, results, prefix)
    number, pictures = questions(settings, results, settings.folds.dataset)
    held_out = number / max(2, settings.folds.number)
    tokens = shown_tokens(settings, model, prefix) * pictures / number + TEXT_TOKENS["questions"]
    return Cost(held_out, held_out * PREDICTION * 2 * 2 * model.weights * tokens)


@dataclass(frozen=True)
class Hours:
    """Estimated hours of trainings and predictions.

    Attributes:
        of_training: by prefix, of one training.
        of_prediction: by schedule, of one prediction.
        left: of all that is left.
        done: what finished ones took.
        rate: FLOP/s that the estimate assumes.
        measured: finished trainings that the rate is from; 0 where it is assumed.
        error: median relative error of the estimates of these, each from the others; None for fewer than two.
    """

    of_training: dict[str, float]
    of_prediction: dict[str, float]
    left: float
    done: float
    rate: float
    measured: int
    error: float | None

    def of(self, step: Step) -> float:
        """Hours of one job, a training or a prediction."""
        if step.cell:
            return self.of_training[step.cell.prefix]
        return self.of_prediction[step.name.split("/")[0]]  # the schedule whose answers it is


def hours(settings: Settings, results: Path, reports: Sequence[Report]) -> Hours:
    """Hours from FLOPs and a rate: that of this study's finished trainings, else the one of the settings."""
    costs = {
        prefix: training_cost(settings, results, grid.Checkpoint(prefix, "", 0)) for prefix in grid.prefixes(settings)
    }
    answers = {arm: prediction_cost(settings, results, arm) for arm in grid.schedules(settings)}
    trained = [report for report in reports if report.step.cell]
    took = [
        (costs[report.step.cell.prefix].flops, seconds)
        for report in trained
        if report.state == "done" and (seconds := seconds_taken(report.step.times))
    ]
    rate = settings.plan.tflops * 1e12 * settings.plan.utilisation
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
    found = Hours(of_training, of_prediction, 0.0, done, rate, len(took), error)
    ahead = [report for report in reports if report.state != "done" and report.step.rule in WORK]
    return replace(found, left=sum(found.of(report.step) * (1 - report.fraction) for report in ahead))


def unshared(settings: Settings) -> Counter:
    """Trainings by prefix if every schedule, fold and seed trained all its stages for itself."""
    runs = len(grid.folds(settings)) * len(settings.seeds)
    return Counter(
        {
            prefix: runs * sum(prefix in way for way in grid.ways(settings).values())
            for prefix in grid.prefixes(settings)
        }
    )


def disk_gb(settings: Settings, results: Path) -> tuple[float, float]:
    """GB of vision features and of checkpoints, each saved twice while it trains, with its optimiser's state."""
    width = 2 if settings.features.dtype == "bf16" else 4
    sizes = settings.expanded_datasets()
    encoded = {}  # name of features -> bytes
    for prefix in grid.prefixes(settings):
        model = model_sizes(settings, results, prefix)
        for name in (settings.folds.dataset, grid.stage_of(settings, prefix).data):
            known = isinstance(sizes[name], Captions)
            pictures = sizes[name].sizes[0] if known else questions(settings, results, name)[1]
            bytes_each = model.image_tokens * model.width * width
            encoded[grid.features(settings, name, prefix)] = pictures * bytes_each
    cells = Counter(cell.prefix for cell in grid.trainings(settings))
    trained = 0.0
    for prefix, number in cells.items():
        model, lora = model_sizes(settings, results, prefix), grid.settings_of(settings, prefix).lora
        connector = 4 * (model.width * model.hidden + model.hidden**2)
        adapters = 4 * lora.rank * 2 * model.hidden * 22 * len(lora.target_modules)
        trained += number * (connector + (adapters if grid.way(settings, prefix) == "end to end" else 0))
    return sum(encoded.values()) / 1e9, 3 * trained / 1e9


def detectable(settings: Settings, results: Path) -> tuple[float, bool]:
    """The smallest true difference in points that comparing two schedules finds in 4 cases of 5, and if it is measured.

    From this study's comparison where there is one: the median of its rows. Otherwise from the number of runs, folds,
    questions and pictures, with the run's and the questions' variances assumed (RUN_SD, DISAGREE, ALIKE), as
    `inference.two_way_clustered_t` adds them.
    """
    try:
        rows = read_json(results / "tables/comparison.json")["comparisons"]
        if known := [row["detectable"] for row in rows if row.get("detectable")]:
            return median(known), True
    except (TriptychError, KeyError, TypeError):
        pass
    from triptych.inference import minimum_detectable_effect, overlap_factor  # here, because scipy takes a second

    number, pictures = questions(settings, results, settings.folds.dataset)
    folds = settings.folds.number
    runs = folds * len(settings.seeds)
    if folds == 1:
        number, pictures = max(1, number // 6), max(2, pictures // 6)
    run_term = overlap_factor(runs, folds) * RUN_SD**2 / runs
    question_term = 100**2 * DISAGREE * (1 + (number / pictures - 1) * ALIKE) / number
    if runs < 2:
        return float("inf"), False
    return minimum_detectable_effect((run_term + question_term) ** 0.5, min(runs, pictures) - 1), False


PLANNED = re.compile(r"^Job \d+: Train (.+)\nReason: (.*(?:\n(?!\[|Job ).*)*)", re.MULTILINE)


def trained_again(settings: Settings, results: Path) -> list[tuple[str, str]]:
    """Finished trainings that a run would make again, with Snakemake's reasons, from a dry run.

    Raises:
        TriptychError: the dry run fails.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    command += ["--dry-run", "--nolock", "--cores", "1", "--rerun-triggers", "mtime", "params", "input"]
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as study:
        study.write(settings_text(settings))
        study.flush()
        answer = subprocess.run([*command, "--configfile", study.name], capture_output=True, text=True)
    text = answer.stdout + answer.stderr
    if answer.returncode:
        raise TriptychError(f"the dry run fails: {text.strip().splitlines()[-1]}")
    found = []
    for name, reason in PLANNED.findall(text):
        prefix, split, seed = re.fullmatch(r"(\S+) on (\S+), seed (\d+)", name).groups()
        if (results / f"checkpoints/{prefix}/{split}/seed{seed}/manifest.json").exists():
            found.append((name, reason))
    return found


def lines(settings: Settings, results: Path, reports: Sequence[Report]) -> Iterator[str]:
    """The plan as text."""
    found = hours(settings, results, reports)
    yield f"{'step':<18}{'jobs':>7}{'done':>7}{'left':>7}"
    for rule in dict.fromkeys(report.step.rule for report in reports):
        states = [report.state for report in reports if report.step.rule == rule]
        done = states.count("done")
        yield f"{rule:<18}{len(states):>7}{done:>7}{len(states) - done:>7}"
    cells = Counter(cell.prefix for cell in grid.trainings(settings))
    alone = unshared(settings)
    yield ""
    wide = max(17, *map(len, cells)) + 1
    yield f"{'training':<{wide}}{'runs':>7}{'hours each':>12}{'hours':>9}   if nothing were shared"
    for prefix, number in cells.items():
        each = found.of_training[prefix]
        yield f"{prefix:<{wide}}{number:>7}{each:>12.2f}{number * each:>9.1f}{alone[prefix]:>10} runs"
    total = sum(number * found.of_training[prefix] for prefix, number in cells.items())
    saved = sum(max(0, alone[prefix] - number) * found.of_training[prefix] for prefix, number in cells.items())
    fewer = sum(max(0, alone[prefix] - number) for prefix, number in cells.items())
    predictions = [report for report in reports if report.step.rule == "predict"]
    answering = sum(found.of(report.step) for report in predictions)
    plan = settings.plan
    each = answering / max(1, len(predictions))
    yield f"{'predictions':<{wide}}{len(predictions):>7}{each:>12.2f}{answering:>9.1f}"
    yield ""
    yield f"trainings   {sum(cells.values())}, {total:.1f} {plan.unit}"
    yield f"shared      first stages that schedules share save {fewer} trainings and {saved:.1f} {plan.unit}"
    wait = duration(3600 * found.left / plan.at_once)
    yield f"left        {found.left:.1f} {plan.unit}; about {wait} with {plan.at_once} at once"
    if found.measured:
        off = f"; the median error of such estimates here was {found.error:.0%}" if found.error is not None else ""
        yield f"estimate    at the rate of {found.measured} finished trainings, {found.rate / 1e12:.2g} TFLOP/s{off}"
    else:
        yield (
            f"estimate    assumed: {plan.tflops:g} TFLOP/s, of which {plan.utilisation:.0%} is used (plan.tflops, "
            "plan.utilisation); finished trainings will correct it"
        )
    features, checkpoints = disk_gb(settings, results)
    over = ": TOO LITTLE" if features + checkpoints > plan.disk_gb else ""
    yield f"disk        {features:.1f} GB features, at most {checkpoints:.1f} GB checkpoints; {plan.disk_gb:g} GB{over}"
    points, measured = detectable(settings, results)
    folds, seeds = settings.folds.number, len(settings.seeds)
    assumed = f"assumed: {RUN_SD} points between runs, {DISAGREE:.0%} of answers differ"
    if points == float("inf"):
        yield "finds       nothing: one run shows no spread; use more folds or seeds"
    else:
        yield f"finds       differences of {points:.1f} points in 4 cases of 5, with {folds} folds x {seeds} seeds"
        yield f"            ({'as this study compared so far' if measured else assumed})"
    if not all(model_sizes(settings, results, prefix).known for prefix in grid.prefixes(settings)):
        yield "sizes       of models and data are as the configuration says; they are not prepared yet"


def main() -> None:
    """Say what a study will cost and what it can show. Nothing is run."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    study = parser.add_mutually_exclusive_group()
    study.add_argument("--configfile", type=Path, default=Path("config/config.yaml"), help="the study's configuration")
    study.add_argument("--settings", help="its settings as JSON")
    arguments = parser.parse_args()
    if arguments.settings:
        settings = Settings.model_validate_json(arguments.settings)
        results = results_folder(settings)
    else:
        settings, results = read_study(arguments.configfile)
    print("\n".join(lines(settings, results, survey(settings, results, now=0.0))))
    again = trained_again(settings, results) if results.exists() else []
    print(f"again       {len(again)} finished trainings would be trained again")
    for name, reason in again:
        print(f"            {name}: {short_reason(reason)}")


if __name__ == "__main__":
    run_step(main)
