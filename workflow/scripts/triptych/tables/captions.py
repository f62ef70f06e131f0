"""Step: the table of captions that stages on general data generate for images of their validation part."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from triptych.errors import run_step
from triptych.evaluate.metrics import scores
from triptych.io.atomic import write_text
from triptych.io.parquet import read_table
from triptych.tables.format import csv_text, latex, markdown
from triptych.tables.runs import cell, group_runs, mean_sd
from triptych.utils.seeds import stable_order

MEASURES = {"rouge_l": "ROUGE-L", "token_f1": "token F1"}


AGAINST = ("own", "other")


COLUMNS = ["prefix", "captions", "seeds"]


COLUMNS += [f"{name}_{against}_{part}" for name in MEASURES for against in AGAINST for part in ("mean", "sd")]


def with_others(records: Sequence[dict]) -> list[dict]:
    """The same predictions, each held against the caption of another image: what likeness alone is worth."""
    order = sorted(records, key=lambda record: stable_order(0, "caption", record["question_id"]))
    return [{**record, "gold": other["gold"]} for record, other in zip(order, order[1:] + order[:1], strict=True)]


def summarise(records: Sequence[dict]) -> list[dict]:
    """One row for each prefix: ROUGE-L and token F1 in per cent, mean and sd over seeds, to own and other captions."""
    rows = []
    for prefix, runs in group_runs(records).items():
        row = {"prefix": prefix, "captions": len(next(iter(runs.values()))), "seeds": len(runs)}
        found = {"own": [scores(run, MEASURES) for run in runs.values()]}
        found["other"] = [scores(with_others(run), MEASURES) for run in runs.values()]
        for name in MEASURES:
            for against in AGAINST:
                mean, sd = mean_sd([score[name] for score in found[against]])
                row |= {f"{name}_{against}_mean": mean, f"{name}_{against}_sd": sd}
        rows.append(row)
    return rows


def lines(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table."""
    header = ["stages", "captions", "seeds"]
    header += [
        f"{title}{' to another' if against == 'other' else ''}" for title in MEASURES.values() for against in AGAINST
    ]
    found = []
    for row in rows:
        cells = [cell(row[f"{name}_{to}_mean"], row[f"{name}_{to}_sd"]) for name in MEASURES for to in AGAINST]
        found.append([row["prefix"], str(row["captions"]), str(row["seeds"]), *cells])
    return header, found


def main() -> None:
    """Write `captions` as CSV, Markdown and LaTeX."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="prediction records")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    rows = summarise([record for path in sorted(arguments.predictions) for record in read_table(path)])
    write_text(arguments.out / "captions.csv", csv_text(rows, COLUMNS, decimals=4))
    about = (
        "Captions generated for images of the validation part, in per cent, mean ± standard deviation over seeds: "
        "beside each measure, the same against another image's caption, which is what knowing the style is worth."
    )
    write_text(arguments.out / "captions.md", f"# Captions\n\n{about}\n\n{markdown(*lines(rows))}\n")
    write_text(arguments.out / "captions.tex", latex(*lines(rows), about))


if __name__ == "__main__":
    run_step(main)
