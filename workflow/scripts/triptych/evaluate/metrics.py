"""Metrics: pure functions of records with a question, its gold answer and a prediction."""

from collections import Counter
from collections.abc import Callable, Iterable

from triptych.data.answers import answer_key, normalise, same_answer, words
from triptych.data.schemas import CONSTRAINED
from triptych.evaluate.llava_med import llava_med_closed, llava_med_open

YES_OR_NO = (answer_key("yes"), answer_key("no"))


def exact_match(record: dict) -> bool:
    """Tell whether the prediction is the gold answer, whatever its case, blanks and punctuation."""
    return same_answer(record["prediction"], record["gold"])


def constrained(record: dict) -> bool:
    """Tell whether the answer out of the training answers is the gold answer, by the rule of exact match."""
    return same_answer(record[CONSTRAINED], record["gold"])


def lmms_eval(record: dict) -> bool:
    """Score by the rule of lmms-eval's SLAKE tasks, for which "T2+" is "T2-" and "HER2 (+)" is "HER2 (-)"."""
    return normalise(record["prediction"]) == normalise(record["gold"])


def _words(record: dict) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Give the words of prediction and gold answer, and how many they share, counted with repetition."""
    said, gold = words(record["prediction"]), words(record["gold"])
    return said, gold, (Counter(said) & Counter(gold)).total()


def _f1(shared: int, said: int, gold: int) -> float:
    return 2 * shared / (said + gold) if said + gold else 1.0


def token_f1(record: dict) -> float:
    """Give the harmonic mean of precision and recall of words, 0 to 1; two empty answers score 1."""
    said, gold, shared = _words(record)
    return _f1(shared, len(said), len(gold))


def token_recall(record: dict) -> float:
    """Give the share of the gold answer's words that the prediction has, 0 to 1."""
    said, gold, shared = _words(record)
    return shared / len(gold) if gold else float(not said)


def bleu_1(record: dict) -> float:
    """Give the share of the prediction's words that the gold answer has, times the brevity penalty, 0 to 1.

    BLEU (Papineni et al., ACL 2002) of single sentences with unigrams only.
    """
    said, gold, shared = _words(record)
    if not said:
        return float(not gold)
    shortness = min(1.0, 2.718281828459045 ** (1 - len(gold) / len(said)))
    return shortness * shared / len(said)


def rouge_l(record: dict) -> float:
    """Give the F1 of the longest common subsequence of words, 0 to 1: ROUGE-L (Lin, 2004), for captions."""
    said, gold, _ = _words(record)
    row = [0] * (len(gold) + 1)
    for word in said:
        before = 0
        for place, other in enumerate(gold, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return _f1(row[-1], len(said), len(gold))


def _llava_med_ceiling(record: dict) -> bool:
    return llava_med_closed({**record, "prediction": record["gold"]})


def _is_constrained(record: dict) -> bool:
    return record.get(CONSTRAINED) is not None


def _is_open(record: dict) -> bool:
    return record["answer_type"] == "OPEN"


def _is_closed(record: dict) -> bool:
    return record["answer_type"] == "CLOSED"


def is_yes_no(record: dict) -> bool:
    """Tell whether a record's question is closed and its answer yes or no."""
    return _is_closed(record) and answer_key(record["gold"]) in YES_OR_NO


def always_the_same(records: Iterable[dict]) -> float | None:
    """Give what the commoner one of yes and no scores on the yes/no questions, in per cent; None without any."""
    golds = {record["question_id"]: answer_key(record["gold"]) for record in records if is_yes_no(record)}
    return 100 * max(Counter(golds.values()).values()) / len(golds) if golds else None


# Every metric by the name of its column: the score of one record, and which records its mean is over.
MEASURES: dict[str, tuple[Callable[[dict], float], Callable[[dict], bool]]] = {
    "all": (exact_match, lambda record: True),
    "open": (exact_match, _is_open),
    "closed": (exact_match, _is_closed),
    "yes_no": (exact_match, is_yes_no),
    "token_f1": (token_f1, lambda record: True),
    "recall": (token_recall, lambda record: True),
    "bleu_1": (bleu_1, lambda record: True),
    "rouge_l": (rouge_l, lambda record: True),
    "llava_med_open": (llava_med_open, _is_open),
    "llava_med_closed": (llava_med_closed, _is_closed),
    "llava_med_ceiling": (_llava_med_ceiling, _is_closed),
    "lmms_eval": (lmms_eval, lambda record: True),
    "constrained": (constrained, _is_constrained),
}


def scores(records: Iterable[dict], measures: Iterable[str] = tuple(MEASURES)) -> dict[str, float | None]:
    """Give the mean of each metric in per cent; None for a metric that no record counts for."""
    records = list(records)
    found = {}
    for name in measures:
        score, counts = MEASURES[name]
        values = [score(record) for record in records if counts(record)]
        found[name] = 100 * sum(values) / len(values) if values else None
    return found
