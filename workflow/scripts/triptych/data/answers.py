"""When two answers are the same."""

import re
import string
import unicodedata

# What lmms-eval's SLAKE tasks take for signs; a test holds the list.
CHINESE_SIGNS = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》【】"
_SIGNS = str.maketrans(dict.fromkeys(string.punctuation + CHINESE_SIGNS, " "))
_YES = {"yes", "yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会", "正常"}
_NO = {"no", "nope", "false", "否", "不是", "没有", "无", "不包含", "不能", "不会", "不可以", "不正常", "异常"}
_YES_OR_NO = {**dict.fromkeys(_YES, "yes"), **dict.fromkeys(_NO, "no")}
_SAME = {**_YES_OR_NO, "x ray": "xray"}

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
    text = unicodedata.normalize("NFKC", answer).lower().strip()
    found = _WORD.findall(_JOINT.sub(" ", text)) or text.split()
    joined = tuple(_XRAY.sub("x", " ".join(found)).split())
    return _SAME_WORDS.get(joined, joined)


def same_answer(one: str, other: str) -> bool:
    """Tell whether two answers are the same: by `normalise`, and, where it drops what bears meaning, by `words` too.

    "X-ray" and "xray" are the same wherever they stand, for `normalise` alone only as whole answers.
    """
    first, second = (_XRAY.sub("x", normalise(answer)) for answer in (one, other))
    if first and second and first != second:
        return False
    return words(one) == words(other)
