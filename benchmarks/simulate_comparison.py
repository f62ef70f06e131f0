"""How often do tests of two schedules err? False positives and power, on the structure of SLAKE's questions.

    OMP_NUM_THREADS=1 python benchmarks/simulate_comparison.py

Two designs: each question held out in one of five folds (the images of SLAKE's train and validation parts), and a
common test part that every run answers (its test part). Numbers of questions per image are drawn to look like
SLAKE's, or counted where the environment variable TRIPTYCH_SLAKE names a copy of it.

The logit of a right answer is the sum of

    question 1.5, image 0.6                how hard they are for both arms
    image 0.35, question 0.7 x arm         some suit one arm better than the other
    run 0.16 x arm                           2 points of accuracy between runs; see `Setting` for what runs share

with the standard deviations given. They are assumptions: set them to what a study's own runs show. No arm is better
under the null; under the alternative one is by a shift of 0.25, 3.3 points.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import special, stats
from triptych.evaluate.statistics import Cells, bootstrap_interval, overlap_factor, two_way_clustered_t
from triptych.tables.verdicts import few_draws

FOLDS = 5
BASE, QUESTION, IMAGE, ARM_IMAGE, ARM_QUESTION, RUN = 1.6, 1.5, 0.6, 0.35, 0.7, 0.16
SHIFT = 0.25
AT_ONCE = 100  # studies simulated together: bounds the memory
DRAWS = 500  # of the bootstraps


@dataclass(frozen=True)
class Setting:
    """A design, and how alike the runs of one arm are beside what images and questions do.

    Attributes:
        design: `folds` or `common test`.
        runs: their number, a multiple of `folds`; run r belongs to fold r mod `folds` and seed r div `folds`.
        overlap: correlation of any two runs, as their training parts overlap.
        same_fold: further correlation of runs on the same fold.
        same_seed: further correlation of runs with the same seed, such as a first stage that all folds share.
        folds: training parts; 1 where all runs train on the same one.
    """

    design: str
    runs: int
    overlap: float
    same_fold: float = 0.0
    same_seed: float = 0.0
    folds: int = FOLDS

    @property
    def warned(self) -> bool:
        """Whether the product says that this design has too few draws of what folds share."""
        return self.same_seed > 0 and few_draws(self.folds, self.runs // self.folds)


@dataclass(frozen=True)
class Studies:
    """Results of simulated studies, all of one setting.

    Attributes:
        cells: sums of the differences by run and image, (studies, R, G), and their counts.
        first_only: (studies,) answers that only the first arm's run has right, over all runs.
        second_only: (studies,) the same of the second.
        question_mean: (studies, Q) mean difference of each question over its runs.
        folds: training parts of the setting.
    """

    cells: Cells
    first_only: np.ndarray
    second_only: np.ndarray
    question_mean: np.ndarray
    folds: int


SETTINGS = [
    Setting(design, runs, overlap)
    for design in ("folds", "common test")
    for runs in (FOLDS, 3 * FOLDS)
    for overlap in (0.0, 0.2)
]
# What the correction does not foresee: runs more alike than their overlap makes them.
BEYOND = [
    Setting(design, 3 * FOLDS, 0.2, same_fold, same_seed)
    for design in ("folds", "common test")
    for same_fold, same_seed in ((0.3, 0.0), (0.0, 0.3))
]
# Other numbers of folds and seeds, where all folds share the first stage of a seed; and one training part.
DESIGNS = [
    Setting(design, folds * seeds, 1 / folds, same_seed=same_seed, folds=folds)
    for design in ("folds", "common test")
    for folds, seeds, same_seed in (
        *((3, 1, 0), (5, 1, 0), (5, 5, 0), (10, 1, 0)),
        *((3, 3, 0.3), (5, 5, 0.3), (5, 1, 0.3), (5, 3, 0.3), (10, 1, 0.3), (10, 3, 0.3)),
    )
] + [Setting("common test", seeds, 0.0, folds=1) for seeds in (2, 3, 5, 10)]


def questions_per_image(images: int, seed: int) -> np.ndarray:
    """Numbers like SLAKE's: 4 to 20, 10.9 on average."""
    return np.clip(np.random.default_rng(seed).normal(10.9, 3.2, images).round(), 4, 20).astype(int)


def slake_structure(folder: Path | None) -> dict[str, np.ndarray]:
    """Questions per image of both designs: counted in a copy of SLAKE, or made up."""
    if folder is None:
        return {"folds": questions_per_image(546, 0), "common test": questions_per_image(96, 1)}
    parts = {"folds": ("train", "validation"), "common test": ("test",)}
    return {
        design: np.concatenate([_counted(folder / f"{name}.json") for name in names]) for design, names in parts.items()
    }


def _counted(path: Path) -> np.ndarray:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return np.array(list(Counter(row["img_id"] for row in rows if row["q_lang"] == "en").values()))


def answered(setting: Setting, images: int) -> np.ndarray:
    """Tell which run answers the questions of which image: (runs, images)."""
    if setting.design == "common test":
        return np.ones((setting.runs, images), bool)
    fold_of_image = np.random.default_rng(0).permutation(images) % setting.folds
    return (np.arange(setting.runs) % setting.folds)[:, None] == fold_of_image


def normals(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw standard normal numbers (AT_ONCE, ...)."""
    return generator.standard_normal((AT_ONCE, *shape), np.float32)


def run_effects(generator: np.random.Generator, setting: Setting) -> np.ndarray:
    """Draw what belongs to arm and run, as alike as the setting says: (AT_ONCE, 2, runs)."""
    fold_of_run, seed_of_run = np.arange(setting.runs) % setting.folds, np.arange(setting.runs) // setting.folds
    own = 1 - setting.overlap - setting.same_fold - setting.same_seed
    return RUN * (
        setting.overlap**0.5 * normals(generator, 2, 1)
        + setting.same_fold**0.5 * normals(generator, 2, setting.folds)[:, :, fold_of_run]
        + setting.same_seed**0.5 * normals(generator, 2, setting.runs // setting.folds)[:, :, seed_of_run]
        + own**0.5 * normals(generator, 2, setting.runs)
    )


def simulate(setting: Setting, sizes: np.ndarray, studies: int, shift: float, seed: int) -> Iterator[Studies]:
    """Simulate `studies` studies, AT_ONCE at a time.

    Args:
        setting: what is simulated.
        sizes: (G,) questions of each image.
        studies: their number, a multiple of AT_ONCE.
        shift: logits by which the first arm is better.
        seed: of all draws.
    """
    generator = np.random.Generator(np.random.SFC64(seed))
    answers, normal = answered(setting, len(sizes)), partial(normals, generator)
    for _ in range(studies // AT_ONCE):
        shared = BASE + QUESTION * normal(1, sizes.sum()) + np.repeat(IMAGE * normal(1, len(sizes)), sizes, 2)
        suits = ARM_QUESTION * normal(2, sizes.sum()) + np.repeat(ARM_IMAGE * normal(2, len(sizes)), sizes, 2)
        # The odds of a right answer are a product: of what belongs to arm and question, and of what to arm and run.
        of_question = np.exp(shared + suits + np.float32(shift) * np.array([0.5, -0.5], np.float32)[:, None])
        of_run = np.exp(run_effects(generator, setting))
        sums = np.zeros((AT_ONCE, setting.runs, len(sizes)), np.float32)
        total = np.zeros((AT_ONCE, sizes.sum()), np.float32)
        only = np.zeros((2, AT_ONCE), int)
        for run in range(setting.runs):
            asked = np.repeat(answers[run], sizes)
            odds = of_question[:, :, asked] * of_run[:, :, run, None]
            right = generator.random(odds.shape, np.float32) * (1 + odds) < odds
            difference = right[:, 0].astype(np.int8) - right[:, 1]
            total[:, asked] += difference
            only += [(difference == 1).sum(1), (difference == -1).sum(1)]
            first_question = np.concatenate([[0], np.cumsum(sizes[answers[run]])[:-1]])  # of each image
            sums[:, run, answers[run]] = np.add.reduceat(difference, first_question, axis=1, dtype=np.float32)
        times = np.repeat(answers.sum(0), sizes)
        yield Studies(Cells(sums, answers * sizes), *only, total / times, setting.folds)


def rejected_by_t(mean: np.ndarray, error: np.ndarray, df: int) -> np.ndarray:
    """Where a t test at 5 % rejects."""
    return np.abs(mean) > stats.t.ppf(0.975, df) * error


def over_runs(studies: Studies, factor: float = 1.0) -> np.ndarray:
    """Paired t test over the runs' means, the variance multiplied by `factor`."""
    means = studies.cells.sums.sum(2) / studies.cells.counts.sum(1)
    runs = means.shape[1]
    return rejected_by_t(means.mean(1), (factor * means.var(1, ddof=1) / runs) ** 0.5, runs - 1)


def over_questions(studies: Studies) -> np.ndarray:
    """Paired t test over questions, as if all were independent; runs are averaged."""
    means = studies.question_mean
    return rejected_by_t(means.mean(1), means.std(1, ddof=1) / means.shape[1] ** 0.5, means.shape[1] - 1)


def pooled_mcnemar(studies: Studies) -> np.ndarray:
    """Exact McNemar test over the answers of all runs."""
    least, number = np.minimum(studies.first_only, studies.second_only), studies.first_only + studies.second_only
    return 2 * special.bdtr(least, number, 0.5) < 0.05


def over_images(studies: Studies) -> np.ndarray:
    """Bootstrap over images, all runs kept."""
    sums, counts = studies.cells.sums.sum(1), studies.cells.counts.sum(0)
    images = len(counts)
    drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), DRAWS).astype(np.float32)
    low, high = np.quantile(sums @ drawn.T / (drawn @ counts), [0.025, 0.975], axis=1)
    return (low > 0) | (high < 0)


def over_both(studies: Studies) -> np.ndarray:
    """Bootstrap over runs and images."""
    ends = [bootstrap_interval(Cells(sums, studies.cells.counts), 0, DRAWS) for sums in studies.cells.sums]
    return np.array([low > 0 or high < 0 for low, high in ends])


def clustered(studies: Studies) -> np.ndarray:
    """Two-way clustered t test."""
    return two_way_clustered_t(studies.cells, studies.folds).p < 0.05


def uncorrected(studies: Studies) -> np.ndarray:
    """Two-way clustered t test without the factor for overlap."""
    return two_way_clustered_t(studies.cells, 1).p < 0.05


def over_runs_corrected(studies: Studies) -> np.ndarray:
    """Nadeau and Bengio's corrected t test over the runs' means."""
    return over_runs(studies, overlap_factor(studies.cells.counts.shape[0], studies.folds))


TESTS: dict[str, Callable[[Studies], np.ndarray]] = {
    "two-way t, corrected (Triptych)": clustered,
    "two-way t, not corrected": uncorrected,
    "corrected t over runs": over_runs_corrected,
    "t over run means": over_runs,
    "t over questions": over_questions,
    "pooled McNemar": pooled_mcnemar,
    "bootstrap over images": over_images,
}
SLOW = {"bootstrap over both": over_both}


def rates(
    setting: Setting, sizes: np.ndarray, studies: int, shift: float, seed: int, tests: dict[str, Callable]
) -> dict[str, float]:
    """Share of studies in which each test rejects, in per cent."""
    rejected: Counter = Counter()
    for part in simulate(setting, sizes, studies, shift, seed):
        rejected.update({name: int(test(part).sum()) for name, test in tests.items()})
    return {name: 100 * rejected[name] / studies for name in tests}


def describe(setting: Setting) -> str:
    """A setting as the head of a column."""
    folds = f"{setting.folds} folds x {setting.runs // setting.folds}" if setting.folds > 1 else f"{setting.runs} seeds"
    text = f"{setting.design}, {folds}, overlap {setting.overlap:g}"
    text += f", same fold +{setting.same_fold:g}" if setting.same_fold else ""
    return text + (f", same seed +{setting.same_seed:g}" if setting.same_seed else "")


def main() -> None:
    """Print false positives and power of every test in every setting."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies per number")
    parser.add_argument("--slow", action="store_true", help="with the bootstrap over runs and images")
    arguments = parser.parse_args()
    folder = os.environ.get("TRIPTYCH_SLAKE")
    structure = slake_structure(Path(folder) if folder else None)
    tests = TESTS | (SLOW if arguments.slow else {})
    for design, sizes in structure.items():
        print(f"{design}: {len(sizes)} images, {sizes.sum()} questions ({'SLAKE' if folder else 'made up'})")
    print(f"{arguments.studies} studies a number: ± {196 * (0.05 * 0.95 / arguments.studies) ** 0.5:.1f} at 5 %\n")
    for settings in (SETTINGS, BEYOND, DESIGNS):
        for setting in settings:
            sizes = structure[setting.design]
            false = rates(setting, sizes, arguments.studies, 0.0, 1, tests)
            power = rates(setting, sizes, arguments.studies, SHIFT, 2, tests)
            print(f"{describe(setting):52}{' (warned of)' if setting.warned else ''}  false positives %   power %")
            for name in tests:
                print(f"  {name:50}  {false[name]:17.1f}   {power[name]:7.1f}", flush=True)


if __name__ == "__main__":
    main()
