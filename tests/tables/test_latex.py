"""Tables in LaTeX compile, whatever the names in them are."""

import subprocess

import pandas
import pytest
from latex import PDFLATEX, tabular
from triptych.tables.format import latex

HOSTILE = [
    *("50 %", "a & b", "a_b", "#1", "$x$", "~", "^2", "\\", "\\\\", "{", "}", "}{", "a < b > c | d", "-- --- ----"),
    *("[1]", "[", "*", "**bold**", "*a", '"a', "`", "?`", "a\nb", "a\rb", "a\tb", "a\x00b", "\x1b[1m", "a\u2028b", ""),
    *(
        r"\end{tabular}",
        r"\write18{ls}",
        r"\input{/etc/passwd}",
        r"\\[5cm]",
        "^^4d",
        "%\\",
        "é ü ß",
        "±",
        "−1",
        "1-2-3",
    ),
]


def hostile_table() -> str:
    """Every hostile text in the heading, the first and the last cell of a row, and the caption."""
    rows = [[text, "1.0", text] for text in HOSTILE]
    shown = pandas.DataFrame(rows, columns=["[arm]", "50 %", "*"])
    return latex(shown, " ".join(HOSTILE), "a_b c%")


def test_hostile_texts_stay_in_their_cells():
    rows = tabular(hostile_table())
    assert len(rows) == len(HOSTILE) + 1 and all(row[1] == "1.0" for row in rows[1:])
    seen = dict(zip(HOSTILE, (row[0] for row in rows[1:]), strict=True))
    assert seen["50 %"] == r"50 \%" and seen["\\\\"] == r"\textbackslash{}" * 2 and seen["1-2-3"] == "1-2-3"
    assert seen["[1]"] == "{[}1]" and seen["*a"] == "{*}a" and seen["-- --- ----"] == "-{}- -{}-{}- -{}-{}-{}-"
    assert seen["a\x00b"] == seen["a\u2028b"] == "a b" and seen["**bold**"] == "bold"


def test_a_table_has_a_label_of_signs_that_labels_may_have():
    assert r"\label{tab:a-b-c-}" in hostile_table()
    assert r"\label{tab:comparison-by-type}" in latex(pandas.DataFrame({"a": ["1"]}), "", "comparison_by_type")


@pytest.mark.parametrize(
    "broken",
    [
        r"\begin{tabular}{lr} a & b & c \\ \end{tabular}",
        r"\begin{tabular}{lr} a \\ \end{tabular}",
        r"\begin{tabular}{lr} a & 50 % \\ \end{tabular}",
        r"\begin{tabular}{lr} a_b & 1 \\ \end{tabular}",
        r"\begin{tabular}{lr} {a & 1 \\ \end{tabular}",
        r"\begin{tabular}{lr} \foo & 1 \\ \end{tabular}",
        r"\begin{tabular}{lr} a & 1 \\" "\n" r" [b] & 2 \\ \end{tabular}",
        r"\begin{table} \begin{tabular}{l} a \\ \end{table} \end{tabular}",
        r"\begin{tabular}{lr} $a & 1 \\ \end{tabular}",
    ],
)
def test_the_reader_of_these_tests_finds_what_is_broken(broken):
    with pytest.raises(AssertionError):
        tabular(broken)


@pytest.mark.skipif(PDFLATEX is None, reason="there is no TeX on this machine")
@pytest.mark.parametrize("preamble", ["", r"\usepackage[T1]{fontenc}"])
def test_hostile_tables_compile(tmp_path, preamble):
    (tmp_path / "table.tex").write_text(hostile_table(), encoding="utf-8")
    document = (
        rf"\documentclass{{article}}{preamble}\usepackage{{booktabs}}\begin{{document}}\input{{table}}\end{{document}}"
    )
    (tmp_path / "thesis.tex").write_text(document)
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "thesis.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-1500:]
    assert (tmp_path / "thesis.pdf").stat().st_size > 1000
