"""The comparison's second outcome and its types of questions: each against the same test made by hand."""

import numpy as np
import pyarrow
import pytest
from latex import tabular
from triptych.data.schemas import RECORD_SCHEMA
from triptych.evaluate.statistics import holm, tabulate, two_way_clustered_t
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table, write_table
from triptych.tables import by_type, comparison
from triptych.tables.format import read_csv

TYPES = ("Organ", "Colour", "Size")


def answers(arm, fold, seed, rate, shift=0.0, questions=24):
    """Records of one run: every third question of a type, every second open, four about an image."""
    generator = np.random.default_rng([ord(arm), fold, seed])
    noise = np.random.default_rng([7, fold])  # of the questions: the same in all arms and runs
    start = fold * questions
    return [
        {
            "arm": arm,
            "view": "held-out",
            "split": f"fold{fold}",
            "seed": seed,
            "question_id": f"q{start + number}",
            "image_id": f"i{(start + number) // 4}",
            "group": f"i{(start + number) // 4}",
            "answer_type": "OPEN" if number % 2 else "CLOSED",
            "content_type": TYPES[number % 3],
            "gold": "liver",
            "prediction": "liver" if generator.random() < rate else "lung",
            "gold_logprob": float(np.float32(-2 + noise.normal() + shift + 0.1 * generator.normal())),
        }
        for number in range(questions)
    ]


def study(shifts, folds=3, seeds=2):
    runs = [(fold, seed) for fold in range(folds) for seed in range(seeds)]
    return [row for arm, shift in shifts.items() for run in runs for row in answers(arm, *run, 0.6, shift)]


def run(tmp_path, rows, schedules, *options):
    path = tmp_path / "answers.parquet"
    write_table(path, rows, RECORD_SCHEMA)
    told = ["--predictions", str(path), "--schedules", *schedules, "--equivalence-margin", "1", *options]
    comparison.main([*told, "--out", str(tmp_path / "out")])
    return tmp_path / "out"


def compared(rows, first, *others):
    return comparison.conclude(
        [comparison.compare(first, other, comparison.pair(rows, first, other), 1.0, 0) for other in others]
    )


def test_the_second_outcome_is_the_clustered_t_of_the_log_probabilities(tmp_path):
    rows = study({"a": 0.3, "b": 0.0, "c": 0.0})
    out = run(tmp_path, rows, "abc")
    one, two = read_json(out / "comparison.json")["comparisons"]
    heading, *lines = tabular((out / "comparison.tex").read_text(encoding="utf-8"))
    assert heading[0] == "comparison" and len(lines) == 2 and " minus " in lines[0][0]
    keys = sorted((row["split"], row["seed"], row["question_id"]) for row in rows if row["arm"] == "a")
    value = {(row["arm"], row["split"], row["seed"], row["question_id"]): row for row in rows}
    for row, other in ((one, "b"), (two, "c")):
        pairs = [(value["a", *key], value[other, *key]) for key in keys]
        differences = [mine["gold_logprob"] - theirs["gold_logprob"] for mine, theirs in pairs]
        cells = tabulate(differences, [key[:2] for key in keys], [mine["group"] for mine, _ in pairs])
        expected = two_way_clustered_t(cells, 3)
        assert row["logprob_effect"] == pytest.approx(np.mean(differences)) == pytest.approx(0.3, abs=0.05)
        assert (row["logprob_low"], row["logprob_high"]) == pytest.approx((expected.low, expected.high))
        assert row["logprob_p"] == pytest.approx(expected.p) and row["logprob_left_out"] is None
    assert [row["logprob_p_holm"] for row in (one, two)] == holm([one["logprob_p"], two["logprob_p"]])
    assert one["logprob_effect"] == pytest.approx(one["first_logprob"] - one["second_logprob"])
    page = (out / "comparison.md").read_text()
    assert "## Log-probability of the gold answers" in page and f"{one['logprob_effect']:+.3f}" in page
    csv = read_csv(out / "comparison.csv", comparison.COLUMNS)
    assert csv["logprob_p"].tolist() == pytest.approx([one["logprob_p"], two["logprob_p"]], abs=1e-4)


def test_it_changes_nothing_of_the_first_outcome():
    rows = study({"a": 0.3, "b": 0.0})
    without = [{name: value for name, value in row.items() if name != "gold_logprob"} for row in rows]
    (much,), (none,) = compared(rows, "a", "b"), compared(without, "a", "b")
    assert much["logprob_p"] < 0.05 < much["p"]
    for name in ("effect", "low", "high", "p", "p_holm", "detectable", "verdict", "probability_equal"):
        assert much[name] == none[name]


@pytest.mark.parametrize("lost", ["column", "arm", "one answer", "infinite"])
def test_where_log_probabilities_are_missing_it_is_left_out_and_the_reason_is_said(lost, tmp_path):
    rows = study({"a": 0.3, "b": 0.0, "c": 0.0})
    places = {"column": range(len(rows)), "one answer": [200], "infinite": [200]}
    places["arm"] = [place for place, row in enumerate(rows) if row["arm"] == "b"]
    for place in places[lost]:
        rows[place]["gold_logprob"] = -np.inf if lost == "infinite" else None
    assert rows[200]["arm"] == "b"
    if lost == "column":
        table = tmp_path / "earlier.parquet"
        names = [name for name in RECORD_SCHEMA.names if not name.startswith("gold_")]
        write_table(table, rows, comparison_schema(names))
        rows = read_table(table, comparison.READ, comparison.OPTIONAL)
    one, two = compared(rows, "a", "b", "c")
    arm = "a" if lost == "column" else "b"
    number = len(places[lost]) // (3 if lost == "column" else 1)
    assert f"{number} of 144 stored answers of {arm} have no log-probability" in one["logprob_left_out"]
    assert one["logprob_effect"] is one["logprob_p"] is one["logprob_p_holm"] is None and one["p"] is not None
    if lost != "column":
        assert two["logprob_p_holm"] == two["logprob_p"], "the one that is left"
    page = comparison.as_markdown([one, two])
    pairs = "a minus b, a minus c" if lost == "column" else "a minus b"
    assert page.count("Left out: ") == 1 and f"Left out: {pairs}. " in page and "--forcerun predict" in page


def comparison_schema(names):
    return pyarrow.schema([RECORD_SCHEMA.field(name) for name in names])


def test_of_one_run_the_mean_difference_stands_alone():
    [row] = compared(study({"a": 0.3, "b": 0.0}, folds=1, seeds=1), "a", "b")
    assert row["logprob_effect"] == pytest.approx(0.3, abs=0.1)
    assert row["logprob_low"] is row["logprob_p"] is row["logprob_p_holm"] is None


def test_a_type_is_compared_as_its_questions_alone_are(tmp_path):
    rows = study({"a": 0.0, "b": 0.0})
    for row in rows:  # a is better at organs alone
        row["prediction"] = "liver" if row["content_type"] == "Organ" and row["arm"] == "a" else row["prediction"]
    out = run(tmp_path, rows, "ab")
    table = read_csv(out / f"{by_type.NAME}.csv", by_type.COLUMNS)
    assert table["value"].tolist() == ["Colour", "Organ", "Size", "CLOSED", "OPEN"]
    assert table["questions"].tolist() == [24, 24, 24, 36, 36] and table["groups"].tolist() == [18] * 5
    organ = table[table["value"] == "Organ"].iloc[0]
    assert organ["effect"] > 20 and organ["p_holm"] < 0.05 < table[table["value"] != "Organ"]["p"].min()
    (tmp_path / "open").mkdir()
    alone = read_json(run(tmp_path / "open", rows, "ab", "--answer-type", "OPEN") / "comparison.json")["comparisons"][0]
    row = table[table["value"] == "OPEN"].iloc[0]
    for name in ("effect", "low", "high", "p", "df", "first_accuracy"):
        assert row[name] == pytest.approx(alone[name], abs=1e-4)
    assert table["p_holm"].tolist() == pytest.approx(holm(table["p"].tolist()), abs=4e-4)
    page = (out / f"{by_type.NAME}.md").read_text()
    assert "families of their own" in page and "content type" in page and "Organ" in page
    assert (out / f"{by_type.NAME}.tex").exists()


def test_the_primary_comparisons_types_are_one_family_and_all_others_another():
    pairs = [[{"p": 0.01}, {"p": 0.02}, {"p": None}], [{"p": 0.01}], [{"p": 0.03}, {"p": 0.5}]]
    pairs = [[{**row, "p_holm": None} for row in rows] for rows in pairs]
    found = [row["p_holm"] for row in by_type.correct(pairs)]
    assert found == pytest.approx([0.02, 0.02, None, 0.03, 0.06, 0.5])
    alone = [[{"p": 0.01, "p_holm": None}]]
    assert by_type.correct(alone)[0]["p_holm"] == 0.01


def test_a_type_of_few_folds_is_not_taken_for_one_training_part():
    rows = study({"a": 0.0, "b": 0.0})
    for row in rows:
        row["content_type"] = "Rare" if row["split"] == "fold0" and row["content_type"] == "Organ" else "Other"
    paired = comparison.pair(rows, "a", "b")
    [_, rare] = [row for row in by_type.by_type("a", "b", paired) if row["aspect"] == "content_type"]
    assert (rare["value"], rare["runs"], rare["folds"]) == ("Rare", 2, 1)
    chosen = paired.of_type("content_type", "Rare")
    cells = tabulate(100 * (chosen.first - chosen.second), chosen.runs, chosen.groups)
    expected, narrow = two_way_clustered_t(cells, 3), two_way_clustered_t(cells, 1)
    assert (rare["low"], rare["high"]) == pytest.approx((expected.low, expected.high))
    assert expected.standard_error > narrow.standard_error


def test_types_that_cannot_be_tested_keep_their_difference_and_no_p_value():
    rows = study({"a": 0.0, "b": 0.0})
    for row in rows:
        row["answer_type"] = "OPEN"
        if row["group"] == "i0":
            row["content_type"] = "one image"
        elif row["content_type"] == "Size":
            row["prediction"] = "liver" if row["arm"] == "a" else "lung"
    found = {row["value"]: row for row in by_type.by_type("a", "b", comparison.pair(rows, "a", "b"))}
    assert set(found) == {"one image", "Organ", "Colour", "Size"}, "a single answer type says what the whole does"
    assert found["one image"]["groups"] == 1 and found["one image"]["p"] is None
    assert found["Size"]["effect"] == 100 and found["Size"]["p"] is None, "without any spread"
    assert found["Organ"]["p"] is not None


def test_where_it_is_not_stated_whether_folds_share_a_stage_the_verdict_says_so(tmp_path):
    rows = study({"a": 0.0, "b": 0.0})
    said = {}
    for name, options in {"unknown": [], "none": ["--drawn-once", "{}"], "one": ["--drawn-once", '{"a": "1"}']}.items():
        folder = tmp_path / name
        folder.mkdir()
        out = run(folder, rows, ["a", "b"], *options)
        said[name] = read_json(out / "comparison.json")["comparisons"][0]["verdict"]
    assert "If all folds share the training of a first stage (not stated here)" in said["unknown"]
    assert "All folds share 2 trainings of stage 1" in said["one"] and "share" not in said["none"]
    rows = study({"a": 0.0, "b": 0.0}, folds=3, seeds=4)
    enough = comparison.compare("a", "b", comparison.pair(rows, "a", "b"), 1.0, 0)
    [concluded] = comparison.conclude([enough], None)
    assert "share" not in concluded["verdict"], "four draws are enough"


def test_equal_answers_claim_nothing_in_the_table_either(tmp_path):
    rows = [{**row, "prediction": "liver"} for row in study({"a": 0.0, "b": 0.1})]
    text = (run(tmp_path, rows, ["a", "b"]) / "comparison.md").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("| **a** minus **b**")][:1]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["+0.0", "", "", "", ""]
    assert "without any spread, nothing can be said" in text
    [row] = compared([row for row in rows if (row["split"], row["seed"]) == ("fold0", 0)], "a", "b")
    assert "+0.0 points (the same for every image; McNemar's p 1.000). This compares the two models" in row["verdict"]
    better = [{**row, "prediction": "lung" if row["arm"] == "b" else "liver"} for row in rows]
    flat, other = compared([*better, *study({"c": 0.0})], "a", "b", "c")
    assert (flat["effect"], flat["p"], flat["p_holm"], flat["low"]) == (100, None, None, None)
    assert other["p_holm"] == other["p"] and other["low"] is not None
