"""When two answers are the same."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

# What lmms-eval's SLAKE tasks take for signs; a test holds the list.
CHINESE_SIGNS = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》【】"
_SIGNS = str.maketrans(dict.fromkeys(string.punctuation + CHINESE_SIGNS, " "))
_YES = {"yes", "yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会", "正常"}
_NO = {"no", "nope", "false", "否", "不是", "没有", "无", "不包含", "不能", "不会", "不可以", "不正常", "异常"}
_YES_OR_NO = {**dict.fromkeys(_YES, "yes"), **dict.fromkeys(_NO, "no")}
_SAME = {**_YES_OR_NO, "x ray": "xray"}

# What word processors write for quotes, hyphens, minus signs and the stroke of a fraction.
_TYPESET = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc", "'") | dict.fromkeys("\u201c\u201d", '"'))
_TYPESET |= str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-") | {"\u2044": "/"})
_ACCENT = "\u00b4"  # typed for an apostrophe; NFKC makes a blank and an accent of it

# After a digit, a raised number is a power, and other numerals are numbers of their own.
_POWER = re.compile(r"(?<=\d)(?=[\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070\u2074-\u2079])")
_NUMERAL = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215f\u2080-\u2089\u2460-\u24ff\u2776-\u2793])")

# Signs that only punctuate, unless they stand between digits or begin a decimal: 1.5, .5, 120/80; or a star follows a
# digit: T2* is another sequence than T2.
_PAUSES = re.escape("".join(sorted({*string.punctuation, *"。、《》【】「」"} - {*"+-<>=%^~"})))
_JOINT = re.compile(r"(?<=[\w*])-(?=[^\W\d])|(?<=[^\W\d])-(?=\w)")  # hyphens: x-ray, T2*-weighted
_SCRIPT = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # written without blanks
_BETWEEN = rf"[.,](?=\d)|(?<=\d)[{_PAUSES}](?=\d)|(?<=\d)\*(?!\*)"
_WORD = re.compile(rf"[{_SCRIPT}]|[^\W_{_SCRIPT}]+|{_BETWEEN}|[^\w\s{_PAUSES}]")
_XRAY = re.compile(r"(?<![a-z0-9])x (?=rays?(?![a-z0-9]))")  # two words that are one
_SAME_WORDS = {tuple(_WORD.findall(text)): (same,) for text, same in _YES_OR_NO.items()}


def normalise(answer: str) -> str:
    """Bring an answer into the form in which lmms-eval's SLAKE tasks compare it.

    Lower case; brackets with what is in them, and punctuation, become spaces; an answer that is a word for yes or no is
    that, and "x-ray" is "xray". Opposites may become equal: "T2+" and "T2-", "(A)" and "(B)".
    """
    text = re.sub(r"（[^）]*）", " ", re.sub(r"\([^)]*\)", " ", answer.lower())).translate(_SIGNS)
    text = " ".join(text.split())
    return _SAME.get(text, text)


def words(answer: str) -> tuple[str, ...]:
    """Cut an answer into words and the signs that bear meaning, in lower case; in Chinese, a word is a character.

    Blanks and punctuation are left out, not what is in brackets: "HER2 (+)" is `her2`, `+`. An answer that is a word
    for yes or no is that, and "x-ray" is `xray` wherever it stands. Of an answer that is nothing but punctuation, that
    is the word.
    """
    text = plain_signs(answer).lower().strip()
    found = _WORD.findall(_JOINT.sub(" ", text)) or text.split()
    joined = tuple(_XRAY.sub("x", " ".join(found)).split())
    return _SAME_WORDS.get(joined, joined)


@lru_cache(1 << 16)  # the same answers come again and again
def answer_key(answer: str) -> tuple[str, tuple[str, ...]]:
    """Give what all spellings of an answer have in common: answers are the same where their keys are equal.

    The key is the answer's form by `normalise`, and, because that drops what bears meaning, its `words` too. Of an
    answer that is in brackets as a whole, the form is that of what they hold. "X-ray" and "xray" are the same wherever
    they stand, for `normalise` alone only as whole answers.
    """
    text = plain_signs(answer)
    form = normalise(text) or normalise(re.sub(r"[()]", " ", text))
    return _XRAY.sub("x", form), words(answer)


def plain_signs(text: str) -> str:
    """Write a text with one code for each sign: composed letters, straight quotes, plain hyphens, nothing invisible.

    Files of one system and the tokens of a language model differ in these, and readers do not see it. A power after a
    digit gets a sign, 10^2, because it is not 102, and a fraction a blank, 1 1/2.
    """
    visible = "".join(sign for sign in text if unicodedata.category(sign) != "Cf").replace(_ACCENT, "'")
    apart = _NUMERAL.sub(" ", _POWER.sub("^", visible))
    return unicodedata.normalize("NFKC", apart).translate(_TYPESET)


def same_answer(one: str, other: str) -> bool:
    """Tell whether two answers are the same, by `answer_key`."""
    return answer_key(one) == answer_key(other)


def spellings(answers: Iterable[str]) -> dict[tuple[str, tuple[str, ...]], str]:
    """Give the commonest spelling of each answer by its key, the commonest answer first; of equals, the first seen."""
    counted = Counter(answers)
    classes: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for answer, number in counted.items():
        classes[answer_key(answer)] += number
    spelled: dict[tuple[str, tuple[str, ...]], str] = {}
    for answer, _ in counted.most_common():
        spelled.setdefault(answer_key(answer), answer)
    return {key: spelled[key] for key, _ in classes.most_common()}
