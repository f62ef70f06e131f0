"""When two answers are the same, and the words that they are cut into."""

import re
import string

import pytest
from triptych.data.answers import answer_key, normalise, same_answer, spellings, words

TYPESET = "[\u00b2\u00b3\u00bd\u2081]"  # signs that lmms-eval's rule leaves as they are
OPPOSITES = [
    ("(A)", "(B)"),
    ("+", "-"),
    ("T2+", "T2-"),
    (">5 cm", "<5 cm"),
    ("-1", "1"),
    ("HER2 (+)", "HER2 (-)"),
    ("MRI (T2)", "MRI (T1)"),
    ("?", ""),
    ("1 5", "1.5"),
    ("-3", "3"),
    ("(A) left lung", "(B) left lung"),
    ("1-5", "1.5"),
    ("120/80", "120 80"),
    ("T2＋", "T2－"),
    ("（左）肺", "（右）肺"),
    (".5 cm", "5 cm"),
    ("p = 1", "p < 1"),
    ("HER2 (+)", "HER2"),
    ("T2*", "T2"),
    ("T2* FLAIR", "T2 FLAIR"),
    ("...", "!"),
    ("10\u00b2", "102"),
    ("10\u00b3/\u00b5L", "103/\u00b5L"),
    ("10\u207b\u00b3", "10-3"),
    ("1\u00bd", "11/2"),
    ("3\u2081", "31"),
    ("(T1\u52a0\u6743)", "(T2\u52a0\u6743)"),
]


@pytest.mark.parametrize(("one", "other"), OPPOSITES)
def test_answers_that_signs_or_brackets_alone_tell_apart_are_not_the_same(one, other):
    if not re.search(TYPESET, one):
        assert normalise(one) == normalise(other), "what lmms-eval's rule does with them"
    assert not same_answer(one, other) and not same_answer(other, one)
    assert same_answer(one, one) and same_answer(f" {other.upper()} ", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Left lung.", " left  lung"),
        ("X-Ray", "xray"),
        ("Yes.", "是的。"),
        ("T2-weighted", "T2 weighted"),
        ("COVID-19", "covid 19"),
        ("Lung, heart", "lung heart"),
        ("**MRI**", "MRI"),
        ("**T2**", "T2"),
        ("T2 *", "T2"),
        ("T2* weighted", "T2*-weighted"),
        ("T2＋", "T2 (+)"),
        ("> 5 cm", ">5 cm"),
        ("（左）肺", "(左)肺。"),
        ("(A)", "A."),
        ("(left lung)", "Left lung"),
        ("(1.5)", "1.5"),
        ("M\u00e9diastin", "Me\u0301diastin"),
        ("\uff23\uff34", "CT"),
        ("3 \u03bcm", "3 \u00b5m"),
        ("yes\u200b", "Yes"),
        ("Crohn\u2019s", "Crohn's"),
        ("5\u201310 cm", "5-10 cm"),
        ("x\u2011ray", "X-Ray"),
        ("\u22125 HU", "-5 HU"),
        ("", "  "),
        ("(\u5de6\u80ba)", "\u5de6\u80ba"),
        ("(T1\u52a0\u6743)", "T1\u52a0\u6743"),
        ("(\u00b12 mm)", "\u00b12 mm"),
        ("(37\u00b0)", "37\u00b0"),
        ("(x-ray)", "X-Ray"),
        ("10\u00b2", "10^2"),
        ("10\u207b\u00b3", "10^\u22123"),
        ("1\u00bd", "1 1/2"),
        ("\u00bd", "1/2"),
        ("cm\u00b2", "cm2"),
        ("\ufe585 HU", "-5 HU"),
        ("Me\u200d\u0301diastin", "M\u00e9diastin"),
        ("Crohn\u00b4s", "Crohn's"),
    ],
)
def test_case_blanks_and_punctuation_make_no_other_answer(one, other):
    assert same_answer(one, other) and same_answer(other, one)


def test_the_signs_of_lmms_evals_slake_tasks_are_blanks_and_no_others():
    full_width = "｡＂＃＄％＆＇＊＋－／＜＝＞＠［＼］＾＿｀｛｜｝。，、；：《》？！（）【】～"
    for sign in string.punctuation + full_width:
        assert normalise(f"left{sign}lung") == "left lung", sign
    for sign in "「」“”·…–°≤":
        assert normalise(f"left{sign}lung") == f"left{sign}lung", sign


def test_brackets_are_dropped_as_lmms_eval_does_one_kind_after_the_other():
    assert normalise("（a(b）c)") == "a" and normalise("(a（b)c）") == "c"


@pytest.mark.parametrize(
    ("one", "other"),
    [("X\u2011ray", "X-ray"), ("Crohn\u2019s", "Crohn's"), ("yes\u200b", "Yes"), ("10\u00b2", "10^2")],
)
def test_words_are_those_of_exact_match(one, other):
    assert words(one) == words(other)


def test_a_word_of_chinese_is_a_character():
    assert words("左肺 upper 2.5 cm") == ("左", "肺", "upper", "2", ".", "5", "cm")
    assert words("かたち") == ("か", "た", "ち") and words("没有。") == ("no",)


def test_spellings_of_an_answer_are_counted_together_and_the_commonest_stands_for_them():
    said = ["Yes"] * 35 + ["yes"] * 30 + ["No"] * 40 + ["yes."]
    assert list(spellings(said).values()) == ["Yes", "No"]
    assert list(spellings(["a", "B", "b", "A"]).values()) == ["a", "B"], "of equals, the first seen"
    assert answer_key("T2+") != answer_key("T2-") and answer_key("(left) lung") != answer_key("lung")
