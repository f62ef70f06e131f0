"""How often does the comparison of two schedules err where runs share a first stage? For both of its outcomes.

    OMP_NUM_THREADS=1 python benchmarks/simulate_draws.py

The designs are numbers of folds and seeds; of one fold, the official part. Studies are those of
`simulate_comparison.py`, with its variances: STAGE of the run variance is that of the first stage. With
`folds.shared_stages: once` runs of a seed share it; with `per-fold` no two runs do. No arm is better, so every test
that rejects errs. Designs that the product warns of are marked.

The second outcome, the log-probability of the gold answer, is minus a log-normal number, so its tail is heavy: on the
logarithm's scale a question has a standard deviation of 1.5, as logits of right answers have.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from simulate_comparison import (
    ARM_IMAGE,
    ARM_QUESTION,
    AT_ONCE,
    IMAGE,
    QUESTION,
    Setting,
    answered,
    normals,
    run_effects,
    simulate,
    slake_structure,
)
from triptych.evaluate.statistics import Cells, two_way_clustered_t
from triptych.tables.verdicts import few_draws

STAGE = 0.3  # share of the run variance that the first stage has
NOISE = 0.5  # of an answer beside question and run, on the logarithm's scale
FOLDS_AND_SEEDS = ((2, 3), (2, 4), (3, 1), (3, 3), (3, 4), (5, 1), (5, 3), (5, 5), (10, 1), (10, 3), (15, 1))
OFFICIAL_SEEDS = (3, 5, 10)
OUTCOMES = ("exact match", "log-probability")


def settings() -> Iterator[tuple[Setting, str]]:
    """Give each design with how often its first stage is drawn."""
    for folds, seeds in FOLDS_AND_SEEDS:
        once = Setting("folds", folds * seeds, 1 / folds, same_seed=STAGE, folds=folds)
        yield once, "once"
        yield replace(once, same_seed=0.0), "per-fold"
    for seeds in OFFICIAL_SEEDS:
        yield Setting("common test", seeds, 0.0, folds=1), "once"


def simulate_logprobs(setting: Setting, sizes: np.ndarray, studies: int, seed: int) -> Iterator[Cells]:
    """Simulate the differences of log-probabilities in `studies` studies without a better arm, AT_ONCE at a time.

    Args:
        setting: what is simulated.
        sizes: (G,) questions of each image.
        studies: their number, a multiple of AT_ONCE.
        seed: of all draws.
    """
    generator = np.random.Generator(np.random.SFC64(seed))
    answers, images = answered(setting, len(sizes)), len(sizes)
    for _ in range(studies // AT_ONCE):
        of_question = QUESTION * normals(generator, 1, sizes.sum()) + ARM_QUESTION * normals(generator, 2, sizes.sum())
        of_image = IMAGE * normals(generator, 1, images) + ARM_IMAGE * normals(generator, 2, images)
        of_question += np.repeat(of_image, sizes, 2)
        of_run = run_effects(generator, setting)
        sums = np.zeros((AT_ONCE, setting.runs, images))
        for run in range(setting.runs):
            asked = np.repeat(answers[run], sizes)
            size = of_question[:, :, asked] + of_run[:, :, run, None]
            size += NOISE * normals(generator, *size.shape[1:])
            first, second = np.exp(size, dtype=np.float64).swapaxes(0, 1)
            starts = np.concatenate([[0], np.cumsum(sizes[answers[run]])[:-1]])
            sums[:, run, answers[run]] = np.add.reduceat(second - first, starts, axis=1)
        yield Cells(sums, answers * sizes)


def false_positives(setting: Setting, outcome: str, sizes: np.ndarray, studies: int, seed: int = 1) -> float:
    """Give the share of studies without a better arm in which the product's test rejects at 5 %, in per cent."""
    if outcome == OUTCOMES[0]:
        parts = (part.cells for part in simulate(setting, sizes, studies, 0.0, seed))
    else:
        parts = simulate_logprobs(setting, sizes, studies, seed)
    rejected = sum(int((two_way_clustered_t(cells, setting.folds).p < 0.05).sum()) for cells in parts)
    return 100 * rejected / studies


def warned(setting: Setting, draws: str) -> bool:
    """Tell whether the product says that this design has too few draws of what folds share."""
    return draws == "once" and few_draws(setting.folds, setting.runs // setting.folds)


def main() -> None:
    """Print false positives of both outcomes in every design, as a table in Markdown."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies per number")
    arguments = parser.parse_args()
    folder = os.environ.get("TRIPTYCH_SLAKE")
    structure = slake_structure(Path(folder) if folder else None)
    print(f"{arguments.studies} studies a number: ± {196 * (0.05 * 0.95 / arguments.studies) ** 0.5:.1f} at 5 %\n")
    print("| folds x seeds | first stage drawn | exact match | log-probability | warned of |")
    print("|---|---|---|---|---|")
    for setting, draws in settings():
        found = [
            f"{false_positives(setting, outcome, structure[setting.design], arguments.studies):.1f}"
            for outcome in OUTCOMES
        ]
        name = "official part" if setting.folds == 1 else f"{setting.folds}"
        said = "yes" if warned(setting, draws) else ""
        cells = [f"{name} x {setting.runs // setting.folds}", draws, *found, said]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
