"""Scores: pure functions over records of questions, gold answers and predictions."""

from collections import Counter
from collections.abc import Callable, Iterable

from triptych.data.answers import normalise

ANSWER_TYPES = ("ALL", "OPEN", "CLOSED")


def exact_match(record: dict) -> bool:
    """True when the normalised prediction equals the normalised gold answer."""
    return normalise(record["prediction"]) == normalise(record["gold"])


def _words(record: dict) -> tuple[list[str], list[str], int]:
    """Words of prediction and gold answer, and how many they share (each as often as both have it)."""
    said, gold = normalise(record["prediction"]).split(), normalise(record["gold"]).split()
    return said, gold, (Counter(said) & Counter(gold)).total()


def _f1(shared: int, said: int, gold: int) -> float:
    return 2 * shared / (said + gold) if said + gold else 1.0


def token_f1(record: dict) -> float:
    """Harmonic mean of precision and recall of words, 0 to 1; two empty answers are equal."""
    said, gold, shared = _words(record)
    return _f1(shared, len(said), len(gold))


def token_recall(record: dict) -> float:
    """Share of the gold answer's words that the prediction has, 0 to 1."""
    said, gold, shared = _words(record)
    return shared / len(gold) if gold else float(not said)


def bleu_1(record: dict) -> float:
    """Share of the prediction's words that the gold answer has, times the penalty for being shorter, 0 to 1.

    Papineni et al. (2002), "BLEU", sentence by sentence and with single words only.
    """
    said, gold, shared = _words(record)
    if not said:
        return float(not gold)
    shortness = min(1.0, 2.718281828459045 ** (1 - len(gold) / len(said)))
    return shortness * shared / len(said)


def rouge_l(record: dict) -> float:
    """F1 of the longest common subsequence of words, 0 to 1: for captions. Lin (2004), "ROUGE"."""
    said, gold, _ = _words(record)
    row = [0] * (len(gold) + 1)
    for word in said:
        before = 0
        for place, other in enumerate(gold, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return _f1(row[-1], len(said), len(gold))


def llava_med_closed(record: dict) -> bool:
    """LLaVA-Med's rule for closed questions: the prediction has "yes" or "no" in it, and the gold answer.

    Of closed questions that offer choices ("Is it the left or the right lung?") it counts even right answers as wrong.
    """
    said, gold = record["prediction"].lower(), record["gold"].lower()
    return ("yes" in said or "no" in said) and gold in said


def _llava_med_ceiling(record: dict) -> bool:
    return llava_med_closed({**record, "prediction": record["gold"]})


def _is_open(record: dict) -> bool:
    return record["answer_type"] == "OPEN"


def _is_closed(record: dict) -> bool:
    return record["answer_type"] == "CLOSED"


def _is_yes_no(record: dict) -> bool:
    return _is_closed(record) and normalise(record["gold"]) in ("yes", "no")


# Every measure by the name of its column: the score of one record, and of which records it is the mean.
MEASURES: dict[str, tuple[Callable[[dict], float], Callable[[dict], bool]]] = {
    "all": (exact_match, lambda record: True),
    "open": (exact_match, _is_open),
    "closed": (exact_match, _is_closed),
    "yes_no": (exact_match, _is_yes_no),
    "token_f1": (token_f1, lambda record: True),
    "recall": (token_recall, lambda record: True),
    "bleu_1": (bleu_1, lambda record: True),
    "rouge_l": (rouge_l, lambda record: True),
    "llava_med_open": (token_recall, _is_open),
    "llava_med_closed": (llava_med_closed, _is_closed),
    "llava_med_ceiling": (_llava_med_ceiling, _is_closed),
}


def scores(records: Iterable[dict], measures: Iterable[str] = tuple(MEASURES)) -> dict[str, float | None]:
    """Means in per cent by measure; None where no record counts for one."""
    records = list(records)
    found = {}
    for name in measures:
        score, counts = MEASURES[name]
        values = [score(record) for record in records if counts(record)]
        found[name] = 100 * sum(values) / len(values) if values else None
    return found
