"""When two answers are the same."""

import re
import string

_SIGNS = str.maketrans(dict.fromkeys(string.punctuation + "。，、；：？！（）《》【】「」～", " "))
_YES = {"yes", "yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会", "正常"}
_NO = {"no", "nope", "false", "否", "不是", "没有", "无", "不包含", "不能", "不会", "不可以", "不正常", "异常"}
_SAME = {**dict.fromkeys(_YES, "yes"), **dict.fromkeys(_NO, "no"), "x ray": "xray"}


def normalise(answer: str) -> str:
    """Bring an answer into the form in which exact match compares it, by the rule of lmms-eval's SLAKE tasks.

    Lower case; brackets with what is in them, and punctuation, become spaces; an answer that is a word for yes or no is
    that, and "x-ray" is "xray".
    """
    text = re.sub(r"\([^)]*\)|（[^）]*）", " ", answer.lower()).translate(_SIGNS)
    text = " ".join(text.split())
    return _SAME.get(text, text)
