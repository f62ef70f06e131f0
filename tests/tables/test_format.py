"""The three forms of a table, and its way back from CSV."""

import csv
import re

import pandas
import pytest
from pandas.testing import assert_frame_equal
from triptych.errors import TriptychError
from triptych.tables.format import (
    FLAG,
    INTEGER,
    NUMBER,
    TEXT,
    current_names,
    latex,
    make_table,
    markdown,
    read_csv,
    rows_of,
    write_csv,
    write_table,
)

COLUMNS = {"arm": TEXT, "trained": FLAG, "questions": INTEGER, "mean": NUMBER, "sd": NUMBER, "note": TEXT}
ROWS = [
    {"arm": "1", "trained": True, "questions": 12, "mean": 62.5, "sd": 1.25, "note": 'says "a, b"'},
    {"arm": "NA", "trained": False, "questions": None, "mean": 100.0, "sd": None},
    {"arm": "nan", "trained": None, "questions": 3, "mean": None, "note": "是", "other": 5},
]


def test_a_table_comes_back_from_csv_with_its_types(tmp_path):
    table = make_table(ROWS, COLUMNS)
    write_csv(tmp_path / "table.csv", table)
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()[:3] == [
        "arm,trained,questions,mean,sd,note",
        '1,True,12,62.5000,1.2500,"says ""a, b"""',
        "NA,False,,100.0000,,",
    ]
    again = read_csv(tmp_path / "table.csv", COLUMNS)
    assert_frame_equal(again, table)
    first, second, third = rows_of(again)
    assert first == ROWS[0] and isinstance(first["questions"], int) and first["trained"] is True
    assert (second["arm"], second["questions"], second["sd"], second["note"]) == ("NA", None, None, None)
    assert (third["arm"], third["trained"], third["mean"], third["note"]) == ("nan", None, None, "是")


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    write_csv(tmp_path / "table.csv", make_table([], COLUMNS))
    again = read_csv(tmp_path / "table.csv", COLUMNS)
    assert list(again.columns) == list(COLUMNS) and rows_of(again) == []


def test_tables_of_version_0_1_are_read_under_the_names_of_today(tmp_path):
    (tmp_path / "old.csv").write_text("arm,rope,pictures\n1-2,1.0000,4\nnearest-pictures,,\n", encoding="utf-8")
    columns = {"arm": TEXT, "equivalence_margin": NUMBER, "images": INTEGER, "later": NUMBER}
    assert rows_of(read_csv(tmp_path / "old.csv", columns)) == [
        {"arm": "1-2", "equivalence_margin": 1.0, "images": 4, "later": None},
        {"arm": "nearest-images", "equivalence_margin": None, "images": None, "later": None},
    ]
    assert current_names({"identical_pictures": 1, "seen": "a"}) == {"identical_images": 1, "seen": "a"}


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(TriptychError, match=r"none\.csv: missing; run the study first"):
        read_csv(tmp_path / "none.csv", COLUMNS)
    (tmp_path / "table.csv").write_text("arm,questions\n1,many\n", encoding="utf-8")
    with pytest.raises(TriptychError, match=r"table\.csv: .*'many'.*; delete the file and run Snakemake again"):
        read_csv(tmp_path / "table.csv", COLUMNS)


def test_columns_of_markdown_line_up_and_keep_their_text():
    shown = pandas.DataFrame([["**a**", "62.5 ± 1.0", ""], ["longer name", "1", "x"]], columns=["arm", "mean", "lost"])
    assert markdown(shown).splitlines() == [
        "| arm         | mean       | lost |",
        "|-------------|------------|------|",
        "| **a**       | 62.5 ± 1.0 |      |",
        "| longer name | 1          | x    |",
    ]


def test_latex_escapes_what_latex_would_read():
    shown = pandas.DataFrame([["**a&b**", "62.5 ± 1.0"]], columns=["arm", "exact_match"])
    assert latex(shown, "50 % of it", "arms").splitlines() == [
        r"\begin{table}",
        r"  \centering",
        r"  \caption{50 \% of it}",
        r"  \label{tab:arms}",
        r"  \begin{tabular}{lr}",
        r"  \toprule",
        r"  arm & exact\_match \\",
        r"  \midrule",
        r"  a\&b & 62.5 $\pm$ 1.0 \\",
        r"  \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]


HOSTILE = ["<script>alert(1)</script>", "a | b", "[x](javascript:y)", "`code`", "two\n\nlines", r"\input /etc/passwd"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_out_of_data_is_one_cell_of_a_markdown_table_and_nothing_more(text):
    lines = markdown(pandas.DataFrame([[text, "1"]], columns=["value", text])).splitlines()
    assert len(lines) == 3 and len(set(map(len, lines))) == 1
    for line in (lines[0], lines[2]):
        assert len(re.findall(r"(?<!\\)\|", line)) == 3 and "<" not in line and not re.search(r"(?<!\\)[`\[]", line)


def test_a_backslash_out_of_data_begins_no_command_of_latex():
    shown = pandas.DataFrame([[r"\input /etc/passwd", r"a~b^c<d>|\\"]], columns=["value", r"\def"])
    text = latex(shown, r"\write18{ls}", "")
    assert r"\textbackslash{}input /etc/passwd & a\textasciitilde{}b\textasciicircum{}c\textless{}d" in text
    assert r"\textbackslash{}def" in text and r"\caption{\textbackslash{}write18\{ls\}}" in text


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-1+1", "\t=1", "'=1", "''@x"])
def test_text_out_of_data_is_no_formula_and_comes_back_as_it_was(tmp_path, text):
    columns = {"value": TEXT, "mean": NUMBER}
    write_csv(tmp_path / "table.csv", make_table([{"value": text, "mean": -1.5}], columns))
    with (tmp_path / "table.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == [f"'{text}", "-1.5000"]
    assert rows_of(read_csv(tmp_path / "table.csv", columns)) == [{"value": text, "mean": -1.5}]


@pytest.mark.parametrize("text", ["-3", "+2.5", "T2-", "x=1", "'quoted'", "a@b"])
def test_other_text_is_written_as_it_is(tmp_path, text):
    write_csv(tmp_path / "table.csv", make_table([{"value": text}], {"value": TEXT}))
    assert (tmp_path / "table.csv").read_text() == f"value\n{text}\n"
    assert rows_of(read_csv(tmp_path / "table.csv", {"value": TEXT})) == [{"value": text}]


def test_a_heading_may_stand_twice():
    shown = pandas.DataFrame([["a", "1", "2"]], columns=["arm", "lost", "lost"])
    assert "| a   | 1    | 2    |" in markdown(shown) and "a & 1 & 2" in latex(shown, "", "")


def test_the_three_forms_say_the_same(tmp_path):
    table = make_table(ROWS[:1], COLUMNS)
    shown = pandas.DataFrame([["1", "62.5 ± 1.2"]], columns=["arm", "mean"])
    write_table(tmp_path / "table", table, shown, "A table", "What it shows.", "\nMore.\n", decimals=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.md", "table.tex"]
    assert "1,True,12,62.5,1.2," in (tmp_path / "table.csv").read_text()
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("# A table\n\nWhat it shows.\n\n| arm | mean       |") and text.endswith("|\n\nMore.\n")
    assert r"\caption{What it shows.}" in (tmp_path / "table.tex").read_text()
