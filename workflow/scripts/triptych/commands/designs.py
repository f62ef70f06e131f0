"""Other numbers of folds and seeds at about the cost of a study, and what each would detect.

Where the study has comparisons of its own, they say how much its runs vary, and so what other designs would detect.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import stdev

from triptych.commands.cost import GOLD, prediction_cost, questions, training_cost
from triptych.commands.estimate import DISAGREE, precision
from triptych.config import paths
from triptych.config.grid import Checkpoint
from triptych.config.study import Study
from triptych.config.wildcards import asked_views
from triptych.errors import TriptychError
from triptych.io.manifest import read_json

FOLDS = range(2, 11)
ABOUT = 0.2  # of the study's cost, by which that of another design may differ


@dataclass(frozen=True)
class Contrast:
    """What a finished comparison of the study says of its precision, in points.

    Attributes:
        first: name of the first schedule.
        second: name of the second.
        effect: the difference.
        run_effects: the difference in each run, two or more.
        folds: different training parts.
        seeds: different seeds.
        standard_error: of the effect.
        detectable: its minimum detectable effect.
        disagree: share of the answers that one schedule alone has right; assumed where an earlier version compared.
    """

    first: str
    second: str
    effect: float
    run_effects: tuple[float, ...]
    folds: int
    seeds: int
    standard_error: float
    detectable: float
    disagree: float

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the difference between runs, with what the choice of questions adds by chance."""
        return stdev(self.run_effects)


@dataclass(frozen=True)
class Design:
    """Numbers of folds and seeds with the hours of all trainings and answers, and the minimum detectable effect."""

    folds: int
    seeds: int
    hours: float
    detectable: float


def contrasts(study: Study) -> list[Contrast]:
    """Read the study's own comparisons: those with a spread, and none where a row has no interval."""
    try:
        rows = read_json(study.path(paths.TABLE, table="comparison.json"))["comparisons"]
        return [
            Contrast(
                row["first"],
                row["second"],
                row["effect"],
                tuple(row["run_effects"].values()),
                row["folds"],
                row["seeds"],
                float(row["standard_error"]),
                float(row["detectable"]),
                row.get("disagree", DISAGREE),
            )
            for row in rows
            if len(row["run_effects"]) > 1 and row["standard_error"] > 0
        ]
    except (TriptychError, LookupError, TypeError, AttributeError):
        return []


def run_sd(study: Study, contrast: Contrast) -> float:
    """Estimate the standard deviation between runs that is left when each answers very many questions, in points."""
    number, _ = questions(study, study.settings.folds.dataset)
    asked = number / contrast.folds
    by_chance = 100**2 * contrast.disagree / asked
    return max(0.0, contrast.spread**2 - by_chance) ** 0.5


def predicted(study: Study, folds: int, seeds: int, known: Contrast | None) -> float:
    """Predict the minimum detectable effect of a design, in points.

    Args:
        study: the study.
        folds: of the design.
        seeds: of the design.
        known: the comparison that says how much runs vary. For the design that it has, its own effect results; for
            others, its standard error changes as the plan's formula does. None: the plan's assumptions.
    """
    from triptych.evaluate.statistics import minimum_detectable_effect

    if known is None:
        variance, df = precision(study, folds, seeds)
        return minimum_detectable_effect(variance**0.5, df)
    varying = run_sd(study, known), known.disagree
    variance, df = precision(study, folds, seeds, *varying)
    own, own_df = precision(study, known.folds, known.seeds, *varying)
    error = known.standard_error * (variance / own) ** 0.5
    scale = known.detectable / minimum_detectable_effect(known.standard_error, own_df)
    return scale * minimum_detectable_effect(error, df)


def hours_of_a_seed(study: Study, rate: float, **folds: object) -> float:
    """Estimate the hours of all trainings and answers of the study with one seed and other settings of folds."""
    parts = study.settings.folds.model_copy(update=folds)
    settings = study.settings.model_copy(update={"seeds": [0], "folds": parts})
    other = replace(Study.of(settings), results=study.results)  # where sizes of models and data are
    cells = Counter(cell.prefix for cell in other.grid.trainings)
    flops = sum(number * training_cost(other, Checkpoint(prefix, "", 0)).flops for prefix, number in cells.items())
    views = len(asked_views(other)) + GOLD
    flops += sum(parts.number * views * prediction_cost(other, arm).flops for arm in other.grid.schedules)
    flops += sum(parts.number * (1 + GOLD) * prediction_cost(other, arm).flops for arm in other.grid.swept)
    return flops / rate / 3600


def per_fold_hours(study: Study, rate: float) -> float:
    """Estimate the hours that the study takes more where stages that all folds share are drawn anew for each."""
    more = hours_of_a_seed(study, rate, shared_stages="per-fold") - hours_of_a_seed(study, rate)
    return len(study.settings.seeds) * more


def designs(study: Study, rate: float, known: Contrast | None) -> list[Design]:
    """List designs of about the study's cost, its own among them: for each number of folds, one number of seeds.

    Nothing where the source's own parts are used, which leave no choice of folds, or where nothing is compared.

    Args:
        study: the study.
        rate: FLOP/s.
        known: a comparison that says how much runs vary.
    """
    own, seeds = study.settings.folds.number, len(study.settings.seeds)
    if own == 1 or len(study.grid.schedules) < 2:
        return []
    budget = seeds * hours_of_a_seed(study, rate)
    found = []
    for folds in sorted({own, *FOLDS}):
        each = hours_of_a_seed(study, rate, number=folds)
        count = seeds if folds == own else max(1, round(budget / each))
        if abs(count * each / budget - 1) <= ABOUT:
            found.append(Design(folds, count, count * each, predicted(study, folds, count, known)))
    return found
