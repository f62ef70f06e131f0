"""Tables in LaTeX compile, whatever the names in them are."""

import re
import subprocess

import pandas
import pytest
from conftest import ROOT
from latex import PDFLATEX, tabular
from triptych.report import rows
from triptych.report.drawing import draw_rows, save
from triptych.tables.format import latex

needs_tex = pytest.mark.skipif(PDFLATEX is None, reason="there is no TeX on this machine")

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


def typeset(folder, document):
    """Compile a document with pdfLaTeX."""
    (folder / "thesis.tex").write_text(document, encoding="utf-8")
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "thesis.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-1500:]
    assert (folder / "thesis.pdf").stat().st_size > 1000
    return done.stdout


@needs_tex
def test_the_example_of_the_documentation_compiles_and_a_wide_table_fits(tmp_path):
    [document] = re.findall(r"```latex\n(.*?)```", (ROOT / "docs/figures.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "results/tables").mkdir(parents=True)
    (tmp_path / "results/figures").mkdir()
    wide = pandas.DataFrame([["a rather long name of an arm"] * 12], columns=[f"a long heading {n}" for n in range(12)])
    for name in ("schedules", "comparison"):
        (tmp_path / f"results/tables/{name}.tex").write_text(latex(wide, "A caption.", name))
    chart = rows.ranked([{"arm": "1-2-3", "trained": True, "all_mean": 50.0}], {})
    save(draw_rows([chart], 84), tmp_path / "results/figures/arms-84mm")
    assert "Overfull" not in typeset(tmp_path, document)


@needs_tex
@pytest.mark.parametrize("preamble", ["", r"\usepackage[T1]{fontenc}"])
def test_hostile_tables_compile(tmp_path, preamble):
    (tmp_path / "table.tex").write_text(hostile_table(), encoding="utf-8")
    document = (
        rf"\documentclass{{article}}{preamble}\usepackage{{booktabs}}\begin{{document}}\input{{table}}\end{{document}}"
    )
    typeset(tmp_path, document)
