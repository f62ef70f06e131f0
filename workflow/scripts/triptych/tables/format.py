"""Tables: a data frame with a type for each column, written as CSV, Markdown and LaTeX, and read back from the CSV.

A step makes two frames of its records: the *table*, whose columns hold typed values, and *shown*, whose cells are the
text that people read. The CSV holds the first, Markdown and LaTeX the second.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas

from triptych.errors import TriptychError
from triptych.io.atomic import write_text
from triptych.utils.markdown import plain

Columns = Mapping[str, str]  # name -> type

# Types of columns. Each has a missing value of its own: an integer beside an empty cell stays an integer.
TEXT, INTEGER, NUMBER, FLAG = "string", "Int64", "Float64", "boolean"

# Names that version 0.1 wrote, so that tables of its finished studies are still read.
FORMER_COLUMNS = {
    "rope": "equivalence_margin",
    "pictures": "images",
    "identical_pictures": "identical_images",
    "similar_pictures": "similar_images",
}
FORMER_ARMS = {"nearest-pictures": "nearest-images"}

# fmt: off
_LATEX = str.maketrans({
    "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "±": r"$\pm$", "−": r"$-$",
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\char34{}",  # active in German
    "`": r"\textasciigrave{}",
    # At the start of a row, these would be an argument of the command that ends the row before.
    "[": "{[}", "*": "{*}",
    **dict.fromkeys([*map(chr, range(32)), "\x7f", "\x85", "\u2028", "\u2029"], " "),  # TeX allows none of them
})
# fmt: on

# Text that a spreadsheet would take for a formula, and is no number. An apostrophe before it says that it is text.
_FORMULA = re.compile(r"'*(?![-+]?[\d.]+$)[-=+@\t\r]")


def make_table(rows: Iterable[Mapping], columns: Columns) -> pandas.DataFrame:
    """Make a table of rows: these columns alone, in this order; what a row lacks, or has as None, is missing."""
    return pandas.DataFrame(list(rows), columns=list(columns)).astype(dict(columns))


def rows_of(table: pandas.DataFrame) -> list[dict]:
    """Give the rows of a table as dictionaries of plain Python values; missing ones are None."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def write_csv(path: Path, table: pandas.DataFrame, decimals: int = 4) -> None:
    """Write a table as CSV: numbers with fixed decimals, nothing for a missing value, formulas in data as text."""
    table = _map_text(table, lambda text: f"'{text}" if _FORMULA.match(text) else text)
    write_text(path, table.to_csv(index=False, float_format=f"%.{decimals}f", lineterminator="\n"))


def read_csv(path: Path, columns: Columns) -> pandas.DataFrame:
    """Read a table that `write_csv` wrote, under the names of today; a column that the file lacks is all missing.

    Raises:
        TriptychError: the file is missing, or a value is not of its column's type.
    """
    if not path.exists():
        raise TriptychError(f"{path}: missing; run the study first")
    former = {old: columns[new] for old, new in FORMER_COLUMNS.items() if new in columns}
    try:  # only an empty cell is missing: an arm may be called "NA"
        table = pandas.read_csv(path, dtype={**columns, **former}, keep_default_na=False, na_values=[""])
    except ValueError as error:
        raise TriptychError(f"{path}: {error}; delete the file and run Snakemake again") from error
    table = table.rename(columns=FORMER_COLUMNS).reindex(columns=list(columns)).astype(dict(columns))
    table = _map_text(table, lambda text: text[1:] if text[0] == "'" and _FORMULA.match(text) else text)
    return table.replace({"arm": FORMER_ARMS}) if "arm" in columns else table


def _map_text(table: pandas.DataFrame, change: Callable[[str], str]) -> pandas.DataFrame:
    """Change every text of a table's columns of text."""
    columns = table.select_dtypes("string")
    return table.assign(**{name: columns[name].map(change, na_action="ignore").astype(TEXT) for name in columns})


def current_names(row: Mapping) -> dict:
    """Give a row of a JSON record with the names of today for its columns."""
    return {FORMER_COLUMNS.get(name, name): value for name, value in row.items()}


def markdown(shown: pandas.DataFrame) -> str:
    """Write a frame of text as a Markdown table whose columns line up as plain text too; `**` stays bold.

    `DataFrame.to_markdown` makes columns two characters wider than their heading, which would change every table that
    is already published.
    """
    lines = [list(map(plain, line)) for line in (shown.columns, *shown.to_numpy().tolist())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    heading, *rest = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([heading, rule, *rest])


def latex(shown: pandas.DataFrame, caption: str, name: str) -> str:
    """Write a frame of text as a LaTeX table with the label `tab:name`, for a document that loads `booktabs`."""
    plain = shown.map(_escape).rename(columns=_escape)
    tabular = plain.to_latex(index=False, escape=False, column_format="l" + "r" * (len(shown.columns) - 1))
    head = f"\\begin{{table}}\n  \\centering\n  \\caption{{{_escape(caption)}}}\n"
    head += f"  \\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', name)}}}\n"
    return f"{head}{textwrap.indent(tabular, '  ')}\\end{{table}}\n"


def _escape(text: str) -> str:
    # Two hyphens would become a dash.
    return text.replace("**", "").translate(_LATEX).replace("--", "-{}-").replace("--", "-{}-")


def write_table(
    stem: Path,
    table: pandas.DataFrame,
    shown: pandas.DataFrame,
    title: str,
    about: str,
    after: str = "",
    decimals: int = 4,
) -> None:
    """Write one table in its three forms: `stem` with .csv, .md and .tex.

    Args:
        stem: path without an ending.
        table: typed values, for the CSV.
        shown: the same as text, for the other two.
        title: heading of the Markdown page.
        about: what the table shows: a paragraph in Markdown, the caption in LaTeX.
        after: Markdown that follows the table.
        decimals: of numbers in the CSV.
    """
    write_csv(stem.with_suffix(".csv"), table, decimals)
    write_text(stem.with_suffix(".md"), f"# {title}\n\n{about}\n\n{markdown(shown)}\n{after}")
    write_text(stem.with_suffix(".tex"), latex(shown, about, stem.name))
