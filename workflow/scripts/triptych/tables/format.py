"""Tables as text: columns of Markdown that line up, and LaTeX for a thesis."""

import csv
import io
from collections.abc import Iterable, Sequence


def csv_text(rows: Iterable[dict], columns: list[str], decimals: int) -> str:
    """Rows as CSV; fractions with a fixed number of decimals, nothing for None."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {name: f"{value:.{decimals}f}" if isinstance(value, float) else value for name, value in row.items()}
        writer.writerow(cells)
    return buffer.getvalue()


_ESCAPED = str.maketrans(
    {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "±": r"$\pm$", "−": r"$-$"}
)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as plain text too."""
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    rows = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in (header, *lines)]
    return "\n".join([rows[0], rule, *rows[1:]])


def latex(header: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> str:
    """A LaTeX table, to be put into a document that loads `booktabs`."""

    def row(cells: Sequence[str]) -> str:
        return "  " + " & ".join(cell.replace("**", "").translate(_ESCAPED) for cell in cells) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{caption.translate(_ESCAPED)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"  \toprule",
            row(header),
            r"  \midrule",
            *map(row, lines),
            r"  \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )
