"""The classifier on frozen features: it learns what look-ups cannot, from the training part alone."""

import numpy as np
import pytest
from triptych.data.lookups import majority_per_question, nearest
from triptych.evaluate import baselines, classifier
from triptych.io.parquet import read_table

ASKED = {"is it bright?": 0, "is it round?": 1, "is it large?": 2}


def world(images, seed):
    """Questions of which each asks for the sign of one axis, and vectors with more noise than signs."""
    generator = np.random.default_rng(seed)
    signs = generator.choice([-1, 1], (images, len(ASKED)))
    noise = generator.normal(0, 3, (images, 12))
    vectors = {f"{seed}-{index}": np.concatenate([2 * signs[index], noise[index]]) for index in range(images)}
    rows = [
        {
            "question_id": f"{name}-{axis}",
            "image_id": name,
            "question": question,
            "answer": "yes" if vectors[name][axis] > 0 else "no",
            "answer_type": "CLOSED",
            "content_type": "Any",
        }
        for name in vectors
        for question, axis in ASKED.items()
    ]
    return rows, vectors


def right(predict, rows):
    return sum(predict(row) == row["answer"] for row in rows) / len(rows)


@pytest.fixture(scope="module")
def parts():
    found = [world(images, seed) for seed, images in ((0, 200), (1, 40), (2, 80))]
    return [rows for rows, _ in found], {name: vector for _, vectors in found for name, vector in vectors.items()}


def test_it_learns_a_rule_that_look_ups_cannot(parts):
    (training, validation, held_out), vectors = parts
    cosines = baselines.cosine_vectors(vectors)
    assert right(classifier.classifier(training, vectors, validation), held_out) > 0.9
    assert right(classifier.classifier(training, {}, validation), held_out) < 0.65, "blind"
    assert right(majority_per_question(training, {}), held_out) < 0.65
    assert right(nearest(training, cosines), held_out) < 0.8


def test_the_validation_part_chooses_the_ridge_and_nothing_else_is_learnt_from_it(parts, monkeypatch):
    (training, validation, held_out), vectors = parts
    alone = {}
    ridges = classifier.RIDGES
    for ridge in ridges:
        monkeypatch.setattr(classifier, "RIDGES", (ridge,))
        predict = classifier.classifier(training, vectors, validation)
        alone[ridge] = (right(predict, validation), [predict(row) for row in held_out])
    monkeypatch.setattr(classifier, "RIDGES", ridges)
    best = max(ridges, key=lambda ridge: (alone[ridge][0], ridge))
    chosen = classifier.classifier(training, vectors, validation)
    assert [chosen(row) for row in held_out] == alone[best][1]
    new = [{**row, "answer": "only here"} for row in validation]
    predict = classifier.classifier(training, vectors, new)
    assert "only here" not in {predict(row) for row in validation}


def test_order_and_what_is_asked_change_nothing(parts):
    (training, validation, _), vectors = parts
    known = {row["image_id"] for row in training + validation}
    before = classifier.classifier(training, vectors, validation)
    shown = {name: vector if name in known else vector + 100 for name, vector in vectors.items()}
    after = classifier.classifier(training[::-1], shown, validation[::-1])
    assert [before(row) for row in validation] == [after(row) for row in validation]


def test_a_new_question_gets_a_common_answer_and_few_rows_do(parts):
    rows = [
        {"question_id": str(n), "image_id": "a", "question": "什么?", "answer": answer, "answer_type": "OPEN"}
        for n, answer in enumerate(("肺", "肺", "肝"))
    ]
    for vectors in ({}, {"a": np.ones(3)}):
        predict = classifier.classifier(rows, vectors, rows[:1])
        assert predict({**rows[0], "question": "zzz"}) == "肺"
    one = classifier.classifier(rows[2:], {"a": np.zeros(3)}, rows[:1])
    assert one(rows[0]) == "肝"


def test_of_very_many_rows_a_fixed_choice_is_used(parts, monkeypatch):
    (training, validation, held_out), vectors = parts
    monkeypatch.setattr(classifier, "ROWS", 150)
    first, second = (classifier.classifier(rows, vectors, validation) for rows in (training, sorted(training, key=str)))
    said = [first(row) for row in held_out]
    assert said == [second(row) for row in held_out]
    assert sum(answer == row["answer"] for answer, row in zip(said, held_out, strict=True)) / len(said) > 0.65


@pytest.mark.parametrize("name", ["classifier", "classifier-blind"])
def test_the_step_never_sees_held_out_answers_and_writes_the_same_bytes_twice(study, tmp_path, monkeypatch, name):
    results = study.results

    def answers(out, change):
        load, asked = baselines.load_questions, baselines.asked_questions
        parts = []

        def recorded(data, split, part):
            parts.append(part)
            return load(data, split, part)

        monkeypatch.setattr(baselines, "load_questions", recorded)
        monkeypatch.setattr(baselines, "asked_questions", lambda *given: [{**row, **change} for row in asked(*given)])
        folders = ["--data", results / "data/medical", "--features", results / "features/medical"]
        command = ["step", "--baseline", name, *folders, "--split", "fold0", "--out", out]
        monkeypatch.setattr("sys.argv", list(map(str, command)))
        baselines.main()
        monkeypatch.setattr(baselines, "load_questions", load)
        monkeypatch.setattr(baselines, "asked_questions", asked)
        assert parts == ["train", "validation"]
        return out

    first = answers(tmp_path / "a.parquet", {})
    assert answers(tmp_path / "b.parquet", {}).read_bytes() == first.read_bytes()
    kept = read_table(next((results / f"predictions/{name}/fold0").glob("*.parquet")))
    assert [row["prediction"] for row in read_table(first)] == [row["prediction"] for row in kept]
    lied = read_table(answers(tmp_path / "c.parquet", {"answer": "a lie"}))
    assert {row["gold"] for row in lied} == {"a lie"}
    assert [row["prediction"] for row in lied] == [row["prediction"] for row in kept]


def test_spellings_of_an_answer_are_one_class(parts):
    (training, validation, held_out), vectors = parts
    mixed = [row | {"answer": row["answer"].upper()} if place % 3 else row for place, row in enumerate(training)]
    plain, spelled = (classifier.classifier(rows, vectors, validation) for rows in (training, mixed))
    assert [spelled(row) for row in held_out] == [plain(row).upper() for row in held_out]
