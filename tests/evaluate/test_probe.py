"""Probes: labels, training and test parts, known answers, macro-F1 against scikit-learn, references and verdicts."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from sklearn.metrics import f1_score
from triptych.config.evaluation import Probe
from triptych.config.stages import Connector
from triptych.evaluate import probe
from triptych.evaluate.representations import probe_inputs, random_subspace
from triptych.tables import probes
from triptych.tables.format import make_table, rows_of

SETTINGS = Probe(seeds=2, hidden=16, rare=5)
IMAGES = [f"image{number:03}" for number in range(120)]


def labels_of(names):
    return {image: [names[number % len(names)]] for number, image in enumerate(IMAGES)}


def tokens_of(labels, width=24, noise=0.3, seed=0):
    """Pooled tokens that hold their label: a direction for each, and noise."""
    generator = np.random.default_rng(seed)
    names = sorted({name for several in labels.values() for name in several})
    directions = generator.normal(size=(len(names), width))
    held = [sum((directions[names.index(name)] for name in labels[image]), np.zeros(width)) for image in IMAGES]
    return (np.array(held) + noise * generator.normal(size=(len(IMAGES), width))).astype(np.float32)


def fold_of(tokens, places, labels, held_out, width=16):
    return probe.probe_fold(probe_inputs(tokens, SETTINGS, width), places, labels, held_out, SETTINGS)


def answers_of(tokens, labels, attribute="modality", width=16):
    """Answers of both folds, as the step keeps them."""
    places = {image: number for number, image in enumerate(IMAGES)}
    rows = []
    for fold in range(2):
        held_out = set(IMAGES[fold::2]) if attribute == "organ" else set(IMAGES[60 * fold : 60 * fold + 60])
        found = fold_of(tokens, places, {attribute: labels}, held_out, width)
        run = {"split": f"fold{fold}", "seed": 0}
        rows += [{**run, **row, "group": row["image_id"]} for row in found]
    return rows


def f1_of(rows, kind):
    """Macro-F1 of both tasks."""
    rows = [{**row, "representation": "random-connector"} for row in rows]
    [found] = [row for row in rows_of(probes.summarise(rows, ["random-connector"], {})) if row["probe"] == kind]
    return found["f1"], found["shuffled_f1"]


@pytest.mark.parametrize("kind", probe.PROBES)
@pytest.mark.parametrize("attribute", ["modality", "organ"])
def test_labels_that_tokens_hold_are_found_and_shuffled_labels_are_not(kind, attribute):
    if attribute == "organ":
        draw = np.random.default_rng(3)
        labels = {image: [name for name in ("heart", "liver") if draw.random() < 0.5] for image in IMAGES}
    else:
        labels = labels_of(["CT", "MRI", "X-Ray"])
    found, shuffled = f1_of(answers_of(tokens_of(labels), labels, attribute), kind)
    assert found > 97
    assert shuffled < 62  # chance: a third, or for an organ a half


@pytest.mark.parametrize("kind", probe.PROBES)
def test_tokens_that_hold_nothing_give_chance(kind):
    labels = labels_of(["CT", "MRI"])
    noise = np.random.default_rng(5).normal(size=(len(IMAGES), 24)).astype(np.float32)
    assert 30 < f1_of(answers_of(noise, labels), kind)[0] < 70


@pytest.mark.parametrize("kind", probe.PROBES)
def test_a_probe_never_sees_the_images_that_it_is_tested_on(kind):
    labels = {image: ["CT"] if number < 30 else ["MRI"] for number, image in enumerate(IMAGES)}
    labels |= {image: ["PET"] for image in IMAGES[60:]}  # only where it is tested
    places = {image: number for number, image in enumerate(IMAGES)}
    rows = fold_of(tokens_of(labels), places, {"modality": labels}, set(IMAGES[60:]))
    asked = [row for row in rows if row["task"] == "labels" and row["probe"] == kind]
    assert {row["image_id"] for row in asked} == set(IMAGES[60:])
    assert {name for row in asked for name in row["answer"]} <= {"CT", "MRI"}


@pytest.mark.parametrize("kind", probe.PROBES)
def test_folds_that_hold_out_all_there_is_to_learn_are_answered_all_the_same(kind):
    half, rest = IMAGES[:60], IMAGES[60:]
    places = {image: number for number, image in enumerate(IMAGES)}

    def answers(attribute, labels, held_out):
        found = fold_of(tokens_of(labels), places, {attribute: labels}, set(held_out))
        return {row["image_id"]: row["answer"] for row in found if (row["probe"], row["task"]) == (kind, "labels")}

    values = {image: ["CT"] for image in half} | {image: ["MRI"] for image in rest}
    assert answers("modality", values, rest) == {image: ["CT"] for image in rest}
    assert answers("modality", values, []) == {}
    organs = {image: [] for image in half} | {image: ["heart", "liver"] for image in rest}
    assert answers("organ", organs, rest) == {image: [] for image in rest}
    assert answers("organ", organs, half) == {image: ["heart", "liver"] for image in half}
    organs |= {image: ["heart", "liver"] for image in half[::2]} | {image: ["heart"] for image in half[1::2]}
    found = answers("organ", organs, rest)
    assert all("heart" in said for said in found.values()) and any("liver" in said for said in found.values())


def test_labels_are_what_most_questions_say_and_rare_ones_are_one():
    questions = []
    for number in range(30):
        said = "CT" if number < 12 else "MRI" if number < 24 else ("PET" if number < 27 else "US")
        for question in range(3):
            wrong = number == 0 and question == 2
            row = {"question_id": f"{number}-{question}", "image_id": f"i{number}", "location": "Head"}
            questions.append({**row, "modality": "MRI" if wrong else said})
    boxes = [["liver", [0, 0, 1, 1]], ["liver", [2, 2, 1, 1]]]
    images = [
        {"id": f"i{number}", "boxes": json.dumps([*(boxes if number % 2 else []), ["lung", [0, 0, 1, 1]]])}
        for number in range(30)
    ]
    found = probe.image_labels(questions, images, rare=5)
    assert set(found) == {"modality", "organ"}  # one location tells nothing apart
    assert found["modality"]["i0"] == ["CT"] and found["modality"]["i24"] == found["modality"]["i29"] == ["other"]
    assert found["organ"]["i0"] == [] and found["organ"]["i1"] == ["liver"]  # every image has a lung
    assert "i24" not in probe.image_labels(questions, images, rare=7)["modality"]  # six are too few for "other"
    unknown = [{**row, "modality": "unknown"} if row["image_id"] in ("i0", "i20") else row for row in questions]
    unknown += [{**questions[0], "question_id": "0-3"}]  # one question of i0 says what the others do not know
    found = probe.image_labels(unknown, images, rare=5)["modality"]
    assert found["i0"] == ["CT"] and "i20" not in found


@pytest.mark.parametrize("splits", [("shared",), ("shared-fold0", "shared-fold1"), ("fold0", "fold1")])
def test_a_fold_probes_the_connector_that_was_drawn_for_it(tmp_path, monkeypatch, splits):
    rows = [{"question_id": image, "image_id": image, "modality": "CT", "location": None} for image in IMAGES]
    folds = [
        {"fold": f"fold{fold}", "part": "test" if number % 2 == fold else "train", "question_id": image}
        for fold in (0, 1)
        for number, image in enumerate(IMAGES)
    ]
    tables = {"folds.parquet": folds, "questions.parquet": rows}
    tables["images"] = [{"id": image, "group": image, "boxes": None} for image in IMAGES]
    seen = []
    monkeypatch.setattr(probe, "read_table", lambda path, *columns: tables[path.name])
    monkeypatch.setattr(probe, "image_labels", lambda *given: {"modality": {}})
    monkeypatch.setattr(probe, "Features", lambda path: SimpleNamespace(hidden_size=8, identity=(8, {})))
    monkeypatch.setattr(probe, "text_width", lambda base: 8)
    monkeypatch.setattr(probe, "read", lambda *given: [(split, split) for split in splits])
    monkeypatch.setattr(probe, "probe_inputs", lambda found, *given: found)
    monkeypatch.setattr(probe, "probe_fold", lambda inputs, *given: seen.append(inputs) or [])
    monkeypatch.setattr(probe, "write_table", lambda *given: None)
    job = {"representation": "1", "seed": 0, "connector": Connector().model_dump(), "probe": SETTINGS.model_dump()}
    words = ["--job", json.dumps(job), f"--data={tmp_path}", f"--features={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["probe", *words, f"--language-model={tmp_path}", f"--out={tmp_path / 'out'}"])
    probe.main()
    assert seen == [splits[fold % len(splits)] for fold in (0, 1)]


def test_directions_are_orthonormal_and_drawn_by_their_seed():
    first = random_subspace(40, 16, 1)
    assert np.allclose(first.T @ first, np.eye(16), atol=1e-5)
    assert np.array_equal(first, random_subspace(40, 16, 1))
    assert not np.allclose(first, random_subspace(40, 16, 2))


def test_macro_f1_is_that_of_scikit_learn_also_for_draws():
    draw = np.random.default_rng(0)
    names = ["a", "b", "c"]
    rows = []
    for number in range(60):
        truth = [name for name in names if draw.random() < 0.4]
        answer = [name for name in names if (name in truth) == (draw.random() < 0.7)]
        rows.append({"seed": 0, "probe_seed": 0, "group": f"g{number % 15}", "truth": truth, "answer": answer})
    groups = sorted({row["group"] for row in rows})
    counts = probes.Counts(rows, groups, names)
    weights = draw.multinomial(15, np.full(15, 1 / 15), 20)
    for found, times in zip(counts.macro_f1(weights)[:, 0], weights, strict=True):
        drawn = [row for row in rows for _ in range(times[groups.index(row["group"])])]
        tables = [[[name in row[what] for name in names] for row in drawn] for what in ("truth", "answer")]
        assert found == pytest.approx(100 * f1_score(*tables, average="macro", zero_division=0))


def test_an_interval_holds_the_change_and_is_nothing_for_equal_answers():
    labels = labels_of(["CT", "MRI", "X-Ray"])
    good, poor = answers_of(tokens_of(labels), labels), answers_of(tokens_of(labels, noise=3.0), labels)
    order = ["random-connector", "1", "1-2", "1-2-3"]
    answers = {"random-connector": poor, "1": good, "1-2": poor, "1-2-3": good}
    records = [{**row, "representation": name} for name in order for row in answers[name]]
    references = {"1": "random-connector", "1-2": "1", "1-2-3": "1"}
    table = probes.summarise(records, order, references)
    by_name = {row["representation"]: row for row in rows_of(table) if row["probe"] == "mlp"}
    fell, same = by_name["1-2"], by_name["1-2-3"]
    assert fell["change_low"] < fell["change"] < fell["change_high"] < -10
    assert fell["change"] == pytest.approx(100 * (fell["f1"] / by_name["1"]["f1"] - 1))
    assert same["change"] == same["change_low"] == same["change_high"] == 0
    assert fell["images"] == 120 and fell["folds"] == 2 and fell["probe_seeds"] == 2
    # Another order of the records gives the same numbers.
    assert_frame_equal(probes.summarise(records[::-1], order, references), table)


@pytest.mark.parametrize(
    ("change", "low", "high", "trained", "word"),
    [
        (-25, -30, -20, "projection only", "a fall, as in the paper"),
        (-4, -6, -2, "projection only", "a fall, smaller than in the paper"),
        (-40, -45, -30, "end to end", "a fall, larger than in the paper"),
        (5, 1, 9, "end to end", "a rise in these models, where the paper has a fall"),
        (-1, -6, 4, "projection only", "a fall as large as the paper's lies outside the interval"),
        (-9, -25, 6, "projection only", "lies within the interval"),
    ],
)
def test_the_verdict_says_what_the_interval_allows(change, low, high, trained, word):
    row = {"representation": "1-2", "attribute": "modality", "probe": "mlp", "reference": "1"}
    row |= {"change": change, "change_low": low, "change_high": high}

    def said(before, least):
        """With the reference's own macro-F1, and the least change that it may have brought to a random connector."""
        reference = {"representation": "1", "attribute": "modality", "probe": "mlp", "reference": "random-connector"}
        rows = [row, reference | {"f1": before, "change_low": least, "change_high": 9.0}]
        [found] = probes.verdicts(make_table(rows, probes.COLUMNS), ["1"], {"1-2": trained})
        return found

    assert word in said(70.0, 0.1) and f"{change:+.1f} %" in said(70.0, 0.1)
    assert "little to lose" not in said(70.0, 0.1) and "little to lose" not in said(70.0, None)
    little = (
        "no more is shown to be read after `1` than after a random connector, so there may have been little to lose"
    )
    assert (little in said(70.0, -0.1)) == (high >= 0), "a fall is one"
    assert ("almost without error before" in said(98.5, 0.1)) == (low > 0)


def test_without_a_stage_on_general_data_there_is_no_verdict():
    row = {"representation": "2", "attribute": "modality", "probe": "mlp", "reference": "random-connector"}
    [said] = probes.verdicts(make_table([row], probes.COLUMNS), [], {"2": "projection only"})
    assert "cannot be compared with the paper" in said


@pytest.mark.parametrize("right", [0, 1, 40])
def test_a_reference_that_is_hardly_ever_right_ends_in_no_error(right):
    """Draws in which it reads nothing have no change in per cent; nor has it, if it never reads anything."""
    rows = []
    for number, image in enumerate(IMAGES[:60]):
        shared = {"attribute": "modality", "probe": "mlp", "split": "fold0", "seed": 0, "probe_seed": 0}
        shared |= {"image_id": image, "group": image, "truth": ["CT"]}
        for name, correct in (("1", number < right), ("1-2", True)):
            answer = ["CT"] if correct else ["MRI"]
            for task in ("labels", "shuffled"):
                rows += [{**shared, "probe": kind, "representation": name, "task": task, "answer": answer}
                         for kind in probe.PROBES]  # fmt: skip
    table = probes.summarise(rows, ["1", "1-2"], {"1-2": "1"})
    [row] = [row for row in rows_of(table) if row["probe"] == "mlp" and row["representation"] == "1-2"]
    [said] = probes.verdicts(table, ["1"], {"1-2": "projection only"})
    shown = probes.shown(table)["change, % (95 % interval)"].iloc[-1]
    if right:
        assert 0 < row["change_low"] <= row["change"] <= row["change_high"] < np.inf
        assert "a rise" in said and shown.startswith("+")
    else:
        assert row["change"] is None and "never right" in said and shown == ""
