"""LLaVA-Med's scores of single answers, as its evaluation script computes them (`llava/eval/run_eval.py`).

Its oddities are kept, so that the columns can be compared with numbers that were published with it. One was mended
there, in pull request 35: wrong answers with "yes" or "no" to closed questions are counted, as here.
"""

import re
from collections import Counter

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SAME = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
_MOST_STOPS = 32  # full stops that it removes from a text; others stay
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Every spelling that lacks one apostrophe, and one word that it spells the other way round.
_SPELT = {
    word[: mark.start()] + word[mark.end() :]: word for word in _CONTRACTIONS.split() for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}


def _clean(text: str) -> str:
    """Bring an answer into the form in which LLaVA-Med compares it; doing so twice may change it again.

    A sign is removed where one stands beside a blank, or digits are grouped ("1,000"), and else becomes a blank. Number
    words become digits, "none" is 0, and articles are dropped.
    """
    grouped = re.search(r"\d,\d", text)
    blanks = {sign: "" if grouped or f"{sign} " in text or f" {sign}" in text else " " for sign in _SIGNS}
    text = re.sub(r"\.(?!\d)", "", text.translate(str.maketrans(blanks)), count=_MOST_STOPS)
    words = [_SAME.get(word, word) for word in text.lower().split()]
    return " ".join(_SPELT.get(word, word) for word in words if word not in _ARTICLES)


def llava_med_open(record: dict) -> float:
    """Give the recall of words by LLaVA-Med's rule for open questions, 0 to 1.

    A word that both have counts as often as the prediction says it; an answer without words scores 0.
    """
    said, gold = (Counter(_clean(_clean(record[key].lower())).split()) for key in ("prediction", "gold"))
    shared = sum(count for word, count in said.items() if word in gold)
    missed = sum(count for word, count in gold.items() if word not in said)
    return shared / (shared + missed) if shared else 0.0


def llava_med_closed(record: dict) -> bool:
    """Score by LLaVA-Med's rule for closed questions: the prediction contains "yes" or "no", and the gold answer.

    On closed questions that offer choices ("Is it the left or the right lung?") even right answers count as wrong, and
    "normal" contains "no".
    """
    said, gold = (_clean(record[key].lower()) for key in ("prediction", "gold"))
    return ("yes" in said or "no" in said) and gold in said
