"""Does a model know when it is right? Calibration and selective answering, as pure functions of one run's answers."""

from collections.abc import Sequence

import numpy as np

BINS = 15  # of equal width, as in Guo et al.


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = BINS) -> float:
    """Give the distance between confidence and accuracy, 0 to 1: mean over bins, weighted by their answers.

    The expected calibration error of Guo et al. (On Calibration of Modern Neural Networks, ICML 2017): bins of equal
    width, each with its upper end. Of few answers it is too large, because accuracy in a bin varies by chance.

    Args:
        confidence: (N,) stated probability of being right, 0 to 1.
        right: (N,) whether the answer is right.
        bins: their number.
    """
    stated, hits = np.asarray(confidence, float), np.asarray(right, float)
    place = np.clip(np.ceil(stated * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=hits - stated, minlength=bins)
    return float(np.abs(gaps).sum() / len(hits))


def accepted_errors(confidence: Sequence[float], right: Sequence[bool]) -> np.ndarray:
    """Count the wrong ones among the k most confident answers, for k = 1 ... N: (N,).

    The risk-coverage curve of El-Yaniv and Wiener (Journal of Machine Learning Research 11, 2010), times k. Answers of
    equal confidence count with the share that is wrong among them, so that their order has no influence.
    """
    stated, wrong = np.asarray(confidence, float), 1 - np.asarray(right, float)
    _, tie, sizes = np.unique(-stated, return_inverse=True, return_counts=True)
    shares = np.bincount(tie, weights=wrong) / sizes
    return np.cumsum(np.repeat(shares, sizes))


def accuracy_at(coverage: float, errors: np.ndarray) -> float:
    """Give the accuracy, 0 to 1, on the most confident answers, at least the share `coverage` of all.

    Args:
        coverage: above 0, at most 1.
        errors: (N,) from `accepted_errors`.
    """
    number = int(np.ceil(round(coverage * len(errors), 9)))
    return float(1 - errors[number - 1] / number)


def area_under_risk_coverage(errors: np.ndarray) -> float:
    """Give the mean over k of the share of wrong ones among the k most confident answers, 0 to 1: less is better.

    AURC, as Geifman, Uziel and El-Yaniv define it (ICLR 2019, arXiv 1805.08206). Confidence that says nothing gives the
    share of wrong answers.

    Args:
        errors: (N,) from `accepted_errors`.
    """
    return float((errors / np.arange(1, len(errors) + 1)).mean())
