"""Statistics of a paired comparison of two arms, as pure functions.

The data are differences, first arm minus second, one for each question that a run of both arms answered. Runs (a fold
and a seed) and groups (an image, or all images of one subject) are the units that vary; questions about one image are
not independent of each other, and neither are the runs of one cross-validation, whose training parts overlap. The
statistics need only the sums and counts of the differences per run and group: the *cells*.

Cells fit both designs: with folds, a question is held out in one fold and only that fold's runs fill its group's cells;
on a common test part, every run fills every cell.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from triptych.errors import TriptychError

Number = float | np.ndarray

ROUNDING = 1e-12  # what it leaves of an exact zero, as a share of what was added
DRAWS = 10_000  # of the bootstrap
DRAWS_AT_ONCE = 1000  # bounds its memory
POWER_POINTS = 2000  # power to 0.1 %


@dataclass(frozen=True)
class Cells:
    """Differences by run and group.

    Attributes:
        sums: (..., R, G) sum of the differences in each cell; leading axes are comparisons of the same design.
        counts: (R, G) number of differences in each cell; 0 where a run answered no question of a group.
    """

    sums: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A mean difference with its uncertainty, in the unit of the differences.

    Numbers, or arrays where the cells have leading axes.

    Attributes:
        effect: mean over all answers.
        standard_error: of the effect.
        df: degrees of freedom; on a common test part not a whole number.
        p: two-sided p value of "no difference".
        low: lower end of the confidence interval.
        high: its upper end.
    """

    effect: Number
    standard_error: Number
    df: Number
    p: Number
    low: Number
    high: Number


def tabulate(differences: Sequence[float], runs: Sequence[Hashable], groups: Sequence[Hashable]) -> Cells:
    """Sum and count differences by run and group; the order of the rows has no influence.

    Args:
        differences: (N,) first arm minus second, one for each answered question.
        runs: (N,) the run of each, sortable.
        groups: (N,) the group of each, sortable.

    Raises:
        TriptychError: there is no row.
    """
    if not len(differences):
        raise TriptychError("there is no answer to compare")
    row = {run: index for index, run in enumerate(sorted(set(runs)))}
    column = {group: index for index, group in enumerate(sorted(set(groups)))}
    position = [row[run] * len(column) + column[group] for run, group in zip(runs, groups, strict=True)]
    size, shape = len(row) * len(column), (len(row), len(column))
    sums = np.bincount(position, weights=np.asarray(differences, float), minlength=size)
    return Cells(sums.reshape(shape), np.bincount(position, minlength=size).reshape(shape))


def overlap_factor(runs: int, folds: int) -> float:
    """Give the factor of the runs' variance for overlapping training parts: 1 + runs / (folds - 1); 1 without overlap.

    The corrected resampled t of Nadeau and Bengio (Machine Learning 52, 2003) adds n_test / n_train to 1 / runs, which
    under k-fold cross-validation is 1 / (k - 1).

    Args:
        runs: number of runs.
        folds: number of different training parts; 1 where all runs train on the same one.
    """
    return 1.0 if folds == 1 else 1 + runs / (folds - 1)


def two_way_clustered_t(cells: Cells, folds: int, level: float = 0.95) -> Estimate:
    """Test the mean difference by a t test clustered by run and by group, and give its interval.

    The variance is that of Cameron, Gelbach and Miller (Journal of Business & Economic Statistics 29, 2011), run term
    + group term - term of the cells, each with its G / (G - 1), where the run term is multiplied by `overlap_factor`.
    The degrees of freedom are the number of runs or of groups, whichever is smaller, minus one. With one
    training part and a common test part, where every run fills every cell, they are more: see `satterthwaite`.

    Where every answer differs by the same amount there is no spread: the standard error is 0, the interval is the
    effect alone, and p is 1 for an effect of zero and 0 for any other. A report of such a result must say so.

    Args:
        cells: differences by run and group.
        folds: number of different training parts; 1 where all runs train on the same one.
        level: of the interval.

    Raises:
        TriptychError: fewer than two runs or two groups, whose spread cannot be estimated.
    """
    counts = cells.counts
    runs, groups = counts.shape
    if runs < 2:
        raise TriptychError("one run shows no spread over runs; compare at least two (more seeds or folds)")
    _need_groups(groups)
    effect = cells.sums.sum((-2, -1)) / counts.sum()
    residuals = cells.sums - np.multiply.outer(effect, counts)
    run_term = overlap_factor(runs, folds) * _cluster_variance(residuals.sum(-1), runs, counts)
    group_term = _cluster_variance(residuals.sum(-2), groups, counts)
    cell_term = _cluster_variance(residuals.reshape(*residuals.shape[:-2], -1), int((counts > 0).sum()), counts)
    # By chance the sum of the three can be smaller than one of the first two alone, or negative; the true one is not.
    variance = np.maximum(run_term + group_term - cell_term, np.maximum(run_term, group_term))
    error = np.sqrt(variance)
    scale = np.abs(cells.sums).max((-2, -1)) / counts.max()
    error = np.where(error > ROUNDING * scale, error, 0.0)

    df = min(runs, groups) - 1
    if folds == 1 and (counts > 0).all():
        df = satterthwaite(variance, run_term, group_term - cell_term, runs, groups)
    flat = np.where(effect == 0, 0.0, np.inf)
    t = np.divide(np.abs(effect), error, out=np.asarray(flat), where=error > 0)
    half = stats.t.ppf((1 + level) / 2, df) * error
    values = (effect, error, df, 2 * stats.t.sf(t, df), effect - half, effect + half)
    effect, error, df, p, low, high = (float(value) if np.ndim(value) == 0 else value for value in values)
    return Estimate(effect, error, df, p, low, high)


def satterthwaite(variance: Number, run_term: Number, group_term: Number, runs: int, groups: int) -> Number:
    """Give degrees of freedom midway between those of the smaller number of clusters and Satterthwaite's.

    Satterthwaite's (Biometrics Bulletin 2, 1946; at most those of runs and groups together) take estimated variances
    for true ones, which claims too much of few runs that vary much; the middle does not. Two runs get the former alone.

    Args:
        variance: the sum, as it is used.
        run_term: what runs contribute.
        group_term: what groups contribute; by chance it can be negative, which counts as nothing.
        runs: number of runs.
        groups: number of groups.
    """
    spread = np.square(run_term) / (runs - 1) + np.square(np.maximum(group_term, 0)) / (groups - 1)
    least, most = min(runs, groups) - 1, runs + groups - 2
    both = np.divide(np.square(variance), spread, out=np.full_like(spread, least, dtype=float), where=spread > 0)
    return least + np.clip(both - least, 0, most - least) * (0.5 if runs > 2 else 0.0)


def _cluster_variance(sums: np.ndarray, clusters: int, counts: np.ndarray) -> np.ndarray:
    """Estimate the variance of the mean from the sums of residuals by cluster: (..., clusters) to (...)."""
    return clusters / (clusters - 1) * np.square(sums).sum(-1) / counts.sum() ** 2


def _need_groups(groups: int) -> None:
    if groups < 2:
        raise TriptychError("all questions belong to one image or subject; a comparison needs at least two")


def bootstrap_interval(
    cells: Cells, seed: int, draws: int = DRAWS, level: float = 0.95
) -> tuple[float, float] | tuple[None, None]:
    """Give a percentile interval of the mean difference: runs and groups are resampled, each with replacement.

    There is none, (None, None), where every run has the same mean in every group: without spread, there is nothing to
    judge others by.

    The pigeonhole bootstrap of Owen (Annals of Applied Statistics 1, 2007). It ignores the overlap of training parts,
    so with folds it is too narrow where overlap matters. With one run, only groups are resampled.

    Args:
        cells: differences by run and group, without leading axes.
        seed: of the draws.
        draws: their number.
        level: of the interval.

    Raises:
        TriptychError: fewer than two groups.
    """
    runs, groups = cells.counts.shape
    _need_groups(groups)
    answered = cells.counts > 0
    in_cells = cells.sums[answered] / cells.counts[answered]
    if np.ptp(in_cells) <= ROUNDING * np.abs(in_cells).max():
        return None, None
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, DRAWS_AT_ONCE):
        number = min(DRAWS_AT_ONCE, draws - start)
        of_runs = generator.multinomial(runs, np.full(runs, 1 / runs), number)
        of_groups = generator.multinomial(groups, np.full(groups, 1 / groups), number)
        sums = (of_groups @ cells.sums.T * of_runs).sum(1)
        counts = (of_groups @ cells.counts.T * of_runs).sum(1)
        filled = counts > 0  # of very few groups, a draw can miss every one that its runs answered
        means.append(sums[filled] / counts[filled])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def correlated_bayes_t(estimate: Estimate, margin: float) -> tuple[float, float, float]:
    """Give the probabilities that the difference is below, inside and above the region of practical equivalence.

    The Bayesian correlated t test (Corani and Benavoli, Machine Learning 100, 2015; Benavoli et al., Journal of
    Machine Learning Research 18, 2017): under a flat prior, the true difference follows Student's t about the effect,
    scaled by its standard error. Their variance is (1 / R + 1 / (k - 1)) times that of the runs' means; here the
    two-way clustered variance takes its place. The two are equal where each group has one run and runs are equally
    long; on a common test part, the choice of its images counts too. So probabilities and interval never contradict.

    Args:
        estimate: from `two_way_clustered_t`.
        margin: differences between -margin and +margin count as none.
    """
    if estimate.standard_error == 0:
        return (
            float(estimate.effect < -margin),
            float(abs(estimate.effect) <= margin),
            float(estimate.effect > margin),
        )
    belief = stats.t(estimate.df, estimate.effect, estimate.standard_error)
    below, above = float(belief.cdf(-margin)), float(belief.sf(margin))
    return below, 1 - below - above, above


def mcnemar(first_only: int, second_only: int) -> float:
    """Give the exact two-sided p value of McNemar's test (Psychometrika 12, 1947), for one run of each arm.

    Args:
        first_only: number of questions that only the first arm answered right.
        second_only: number of questions that only the second arm answered right.
    """
    if first_only + second_only == 0:
        return 1.0
    return float(stats.binomtest(first_only, first_only + second_only).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number (Holm, Scandinavian Journal of Statistics 6, 1979), in the order given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def minimum_detectable_effect(standard_error: float, df: float, size: float = 0.05, power: float = 0.8) -> float:
    """Give the smallest true difference that a comparison of this precision finds with probability `power`.

    By the noncentral t distribution, integrated over POWER_POINTS quantiles of chi square: scipy's own has no value
    far from 0. The standard error is taken for the true one.

    Args:
        standard_error: of the effect.
        df: its degrees of freedom.
        size: of the two-sided test.
        power: wanted probability.
    """
    spread = np.sqrt(stats.chi2.ppf((np.arange(POWER_POINTS) + 0.5) / POWER_POINTS, df) / df)
    critical = stats.t.ppf(1 - size / 2, df) * spread

    def lacking(shift: float) -> float:
        return float((stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift)).mean()) - power

    return float(optimize.brentq(lacking, 0, critical[-1] + 10) * standard_error)


def error_range(df: float, level: float = 0.95) -> tuple[float, float]:
    """Give the true standard errors that an estimated one is compatible with, as factors of it: lowest and highest.

    The estimate's square times its degrees of freedom follows chi square, scaled by the true variance.

    Args:
        df: degrees of freedom of the estimate.
        level: of the interval.
    """
    high, low = stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], df)
    return float(np.sqrt(df / high)), float(np.sqrt(df / low))


def verdict(
    first: str, second: str, estimate: Estimate, p_holm: float, margin: float, detectable: float, level: float = 0.95
) -> str:
    """State what a comparison supports, in a sentence or two, in points.

    A difference is claimed only where the corrected p value allows it; equivalence only where the whole interval lies
    within the region.

    Args:
        first: name of the first arm.
        second: name of the second.
        estimate: from `two_way_clustered_t`, in points.
        p_holm: p value after the correction for the number of comparisons.
        margin: half width of the region of practical equivalence, in points.
        detectable: the minimum detectable effect, in points.
        level: of the interval; the test's size is 1 - level.
    """
    effect, low, high = estimate.effect, estimate.low, estimate.high
    if estimate.standard_error == 0:
        return (
            f"{first} minus {second} is {effect:+.1f} points in every run and for every image: without any spread, "
            "nothing can be said about other runs or images."
        )
    size = points(margin)
    ahead, behind = (first, second) if effect > 0 else (second, first)
    interval = f"{effect:+.1f} points ({100 * level:g} % interval {low:+.1f} to {high:+.1f})"
    found = p_holm < 1 - level
    if max(-low, high) <= margin:
        equal = f"{first} and {second} are equivalent to within {size}: {first} minus {second} is {interval}"
        return f"{equal}; {ahead} is slightly better." if found else f"{equal}."
    if found:
        start = f"{ahead} is better than {behind}: {first} minus {second} is {interval}"
        if min(abs(low), abs(high)) > margin:
            return f"{start}, a difference larger than {size}."
        return f"{start}; whether the difference is larger than {size} remains open."
    open_to = round(max(-low, high), 1)
    corrected = ", after correction for the number of comparisons" if low > 0 or high < 0 else ""
    return (
        f"No difference between {first} and {second} is shown{corrected}: {first} minus {second} is {interval}. A "
        f"difference of up to {points(open_to)} is not ruled out; the minimum detectable effect at 80 % power is "
        f"{points(round(detectable, 1))}."
    )


def points(value: float) -> str:
    """Write a number of points: '1 point', '2.5 points'."""
    return f"{value:g} point" if value == 1 else f"{value:g} points"
