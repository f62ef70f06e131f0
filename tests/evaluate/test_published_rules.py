"""Scores of other projects, on answers with the outputs that their own code gave: their oddities are kept."""

import pytest
from triptych.data.answers import normalise
from triptych.evaluate.llava_med import llava_med_closed, llava_med_open
from triptych.evaluate.metrics import exact_match, lmms_eval, scores, token_recall


def record(prediction, gold, answer_type="CLOSED"):
    return {"prediction": prediction, "gold": gold, "answer_type": answer_type}


# lmms-eval 0.7.3, `lmms_eval/tasks/slake/utils.py`: what `slake_process_results` finds correct.
LMMS_EVAL = [
    ("Left lung", "left  lung.", True),
    ("the left lung", "left lung", False),
    ("a lung", "lung", False),
    ("An MRI", "MRI", False),
    ("", "", True),
    ("", "no", False),
    ("?", "", True),
    ("...", "！？", True),
    ("(A)", "", True),
    ("（A）", "(B)", True),
    ("A)", "(A", True),
    ("left (upper) lung", "left lung", True),
    ("left（上）lung", "left lung", True),
    ("（左(右)肺）", "肺", False),
    ("(a（b)c）", "c", True),
    ("（a(b）c)", "c", False),
    ("[left] lung", "left lung", True),
    ("{left}【lung】", "left lung", True),
    ("《MRI》", "mri", True),
    ("「MRI」", "mri", False),
    ("“MRI”", "mri", False),
    ("T2＋", "T2－", True),
    ("T2+", "T2", True),
    ("HER2（＋）", "HER2", True),
    ("＞5 cm", "<5 cm", True),
    ("5％", "5", True),
    ("50%", "50 ％", True),
    ("1.5", "1 5", True),
    ("1．5", "1.5", False),
    ("1．5", "1 5", False),
    ("1，5", "1 5", True),
    ("1,500", "1500", False),
    ("3", "three", False),
    ("3", "３", False),
    ("ＭＲＩ", "MRI", False),
    ("left／right", "left right", True),
    ("left、right", "left, right", True),
    ("left・right", "left right", False),
    ("left·right", "left right", False),
    ("left—right", "left right", False),
    ("left－right", "left-right", True),
    ("left～right", "left~right", True),
    ("left｡", "left。", True),
    ("left＿lung", "left_lung", True),
    ("left\u3000lung", "left lung", True),
    ("left\tlung\n", "left lung", True),
    ("yes", "Yes!", True),
    ("yeah", "yes", True),
    ("Yep.", "TRUE", True),
    ("true", "是的。", True),
    ("nope", "no", True),
    ("FALSE", "没有", True),
    ("none", "no", False),
    ("not", "no", False),
    ("yes, it is", "yes", False),
    ("(yes)", "yes", False),
    ("yes (both)", "yes", True),
    ("no－", "否", True),
    ("是", "有", True),
    ("正常", "yes", True),
    ("不正常", "异常", True),
    ("不正常", "正常", False),
    ("不 是", "不是", False),
    ("否。", "无！", True),
    ("没", "没有", False),
    ("能", "可以", True),
    ("不能", "不可以", True),
    ("X-Ray", "xray", True),
    ("x ray", "X－RAY", True),
    ("X_ray", "X.ray", True),
    ("x-rays", "xrays", False),
    ("X-Ray scan", "xray scan", False),
    ("X光", "x 光", False),
    ("胸部X-ray", "胸部xray", False),
    ("胸腔（肺部）", "胸腔", True),
    ("左肺，右肺", "左肺、右肺", True),
    ("左肺 右肺", "左肺右肺", False),
    ("左肺：上叶", "左肺 上叶", True),
    ("左肺；", "左肺", True),
    ("ß", "SS", False),
    ("İ", "i", False),
    ("É", "é", True),
]
# The same, `normalize_answer`.
FORMS = [
    ("T2-weighted", "t2 weighted"),
    (" (A) left  lung ", "left lung"),
    ("（左）肺", "肺"),
    ("left (", "left"),
    ("left )", "left"),
    ("((a) b)", "b"),
    ("(a\nb) c", "c"),
    ("a，b。c；d：e", "a b c d e"),
    ("＂a＂", "a"),
    ("1/2", "1 2"),
    ("１／２", "１ ２"),
    ("½", "½"),
    ("x ray", "xray"),
    ("x-ray.", "xray"),
    ("XRAY", "xray"),
    ("no (yes)", "no"),
    ("（有）有", "yes"),
    ("Ⅳ", "ⅳ"),
    ("5～6", "5 6"),
    ("a\x1fb", "a b"),
    ("a\u200bb", "a\u200bb"),
    ("不包含。", "no"),
    ("不会", "no"),
    ("会不会", "会不会"),
    ("ΑΣ", "ας"),
]


@pytest.mark.parametrize(("prediction", "gold", "correct"), LMMS_EVAL)
def test_answers_are_correct_as_in_lmms_eval(prediction, gold, correct):
    assert lmms_eval(record(prediction, gold)) is lmms_eval(record(gold, prediction)) is correct


@pytest.mark.parametrize(("answer", "form"), FORMS)
def test_answers_have_the_form_of_lmms_eval(answer, form):
    assert normalise(answer) == form


# LLaVA-Med, `llava/eval/run_eval.py` and `eval_metrics/`: recall of `calculate_f1score`.
OPEN = [
    ("left lung", "left lung", 1.0),
    ("the lung", "Left lung", 0.5),
    ("lung lung", "left lung", 2 / 3),
    ("lung", "left lung lung", 0.5),
    ("a left lung", "the left lung", 1.0),
    ("none", "0", 1.0),
    ("None", "no", 0),
    ("two lungs", "2 lungs", 1.0),
    ("2", "two", 1.0),
    ("ten", "eleven", 0),
    ("eleven", "11", 0),
    ("1,500 cells", "1500 cells", 1.0),
    ("x-ray 1,500", "xray 1500", 1.0),
    ("x-ray", "xray", 0),
    ("x-ray", "x ray", 1.0),
    ("x- ray", "x ray", 1.0),
    ("x - ray", "x ray", 1.0),
    ("(left) lung", "left lung", 1.0),
    ("the (left lung)", "left lung", 1.0),
    ("left/right", "left right", 1.0),
    ("T2+", "T2", 1.0),
    ("HER2 (+)", "HER2 (-)", 1.0),
    ("1.5 cm", "15 cm", 0.5),
    ("5.", "5", 1.0),
    ("e.g. lung", "eg lung", 1.0),
    ("a.", "a", 0),
    ("lung.", "lung", 1.0),
    ("don't", "dont", 1.0),
    ("they'd've", "theyd've", 1.0),
    ("somebody'd", "somebodyd", 1.0),
    ("'ow'sat", "'ows'at", 1.0),
    ("", "", 0),
    ("", "lung", 0),
    ("the", "lung", 0),
    ("lung", "the", 0),
    ("左肺", "左 肺", 0),
    ("左肺，右肺", "左肺", 0),
    ("." * 40 + "one", "1", 1.0),
    ("heart, liver", "liver heart", 1.0),
    ("heart,liver", "liver", 1.0),
    ("-three-", "3", 1.0),
    ("zero", "None", 1.0),
    ("a b c a b", "a b", 1.0),
]
# The same: whether a closed answer is a hit; what is none counts as wrong since pull request 35.
CLOSED = [
    ("yes", "yes", True),
    ("Yes, it is.", "yes", True),
    ("No", "no", True),
    ("yes", "no", False),
    ("no", "yes", False),
    ("yes and no", "yes", True),
    ("yes and no", "no", True),
    ("normal", "no", True),
    ("not seen", "no", True),
    ("none", "no", False),
    ("None of them", "no", False),
    ("nothing", "no", True),
    ("left", "left", False),
    ("left, no", "left", True),
    ("No, the left lung", "left lung", True),
    ("no, a left lung", "the left lung", True),
    ("no, two", "2", True),
    ("no (left)", "left", True),
    ("yesterday", "yes", True),
    ("y es", "yes", False),
    ("", "no", False),
    ("", "yes", False),
    ("是", "是", False),
    ("noon", "the", True),
    ("ye-s", "yes", False),
    ("y.es", "yes", True),
    ("NO!", "No.", True),
    ("one", "no", False),
    ("one no", "no", True),
    ("abnormal", "no", True),
    ("not", "not", True),
]


@pytest.mark.parametrize(("prediction", "gold", "recall"), OPEN)
def test_open_answers_have_the_recall_of_llava_med(prediction, gold, recall):
    assert llava_med_open(record(prediction, gold)) == pytest.approx(recall)


@pytest.mark.parametrize(("prediction", "gold", "hit"), CLOSED)
def test_closed_answers_are_hits_as_in_llava_med(prediction, gold, hit):
    assert llava_med_closed(record(prediction, gold)) is hit


def test_a_constant_yes_is_wrong_where_no_is_right():
    """Its first release left wrong answers with "yes" or "no" out of the mean, and gave a constant yes 100 %."""
    asked = [record("yes", "yes"), record("yes", "no"), record("yes", "no"), record("left", "left")]
    assert scores(asked)["llava_med_closed"] == 25


def test_the_columns_of_llava_med_are_means_over_their_kind_of_question():
    asked = [record("two lungs", "2 lungs", "OPEN"), record("the liver", "liver", "OPEN"), record("None", "no")]
    found = scores(asked)
    assert (found["llava_med_open"], found["llava_med_closed"], found["llava_med_ceiling"]) == (100, 0, 100)
    assert found["recall"] == pytest.approx(100 * (0.5 + 1 + 0) / 3), "the project's own recall maps no numbers"


# "X-Ray" in an answer


@pytest.mark.parametrize(
    ("prediction", "gold", "same", "recall"),
    [
        ("X-Ray scan", "X-Ray", False, 1),
        ("xray", "chest x-ray", False, 0.5),
        ("Chest X-Ray", "chest xray", True, 1),
        ("an x ray image", "an X-ray image.", True, 1),
        ("x-rays", "xrays", True, 1),
        ("x-rays", "x-ray", False, 0),
        ("胸部X-ray", "胸部xray", True, 1),
        ("X-Ray (chest)", "xray (chest)", True, 1),
        ("X-Ray (chest)", "xray (abdomen)", False, 0.5),
        ("max ray", "maxray", False, 0),
        ("x rayon", "xrayon", False, 0),
    ],
)
def test_x_ray_is_one_word_wherever_it_stands(prediction, gold, same, recall):
    assert exact_match(record(prediction, gold)) is exact_match(record(gold, prediction)) is same
    assert token_recall(record(prediction, gold)) == recall
