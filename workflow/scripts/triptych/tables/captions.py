"""Step: the table of captions that stages on general data generate for images of their validation part."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas

from triptych.errors import run_step
from triptych.evaluate.metrics import scores
from triptych.io.parquet import read_tables
from triptych.tables.format import INTEGER, NUMBER, TEXT, make_table, rows_of, write_table
from triptych.tables.runs import cell, group_runs, mean_sd, sizes
from triptych.utils.seeds import stable_order

MEASURES = {"rouge_l": "ROUGE-L", "token_f1": "token F1"}
REFERENCES = ("own", "other")  # the caption that a generated one is compared with: its image's, or another image's

COLUMNS = {"prefix": TEXT, "captions": INTEGER, "seeds": INTEGER}
COLUMNS |= {f"{name}_{of}_{part}": NUMBER for name in MEASURES for of in REFERENCES for part in ("mean", "sd")}


def with_others(records: Sequence[dict]) -> list[dict]:
    """Give the same predictions, each with the caption of another image as gold answer: what shared style scores."""
    order = sorted(records, key=lambda record: stable_order(0, "caption", record["question_id"]))
    return [{**record, "gold": other["gold"]} for record, other in zip(order, order[1:] + order[:1], strict=True)]


def summarise(records: Sequence[dict]) -> pandas.DataFrame:
    """Score captions: a row for each prefix, with ROUGE-L and token F1 in per cent, mean and sd over runs.

    Runs are seeds, or folds and seeds where the stage was drawn for each fold; only then there is a column of folds.
    """
    rows = []
    for prefix, runs in group_runs(records).items():
        row = sizes(runs) | {"prefix": prefix, "captions": len(next(iter(runs.values())))}
        found = {"own": [scores(run, MEASURES) for run in runs.values()]}
        found["other"] = [scores(with_others(run), MEASURES) for run in runs.values()]
        for name in MEASURES:
            for of in REFERENCES:
                row[f"{name}_{of}_mean"], row[f"{name}_{of}_sd"] = mean_sd([score[name] for score in found[of]])
        rows.append(row)
    several = any(row["folds"] > 1 for row in rows)
    return make_table(rows, COLUMNS | {"folds": INTEGER} if several else COLUMNS)


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Give the table as text for people."""
    several = "folds" in table
    heading = ["stages", "captions", "folds x seeds" if several else "seeds"]
    heading += [
        f"{title}{', another image' if of == 'other' else ''}" for title in MEASURES.values() for of in REFERENCES
    ]
    lines = [
        [row["prefix"], str(row["captions"]), (f"{row['folds']} x " if several else "") + str(row["seeds"])]
        + [cell(row[f"{name}_{of}_mean"], row[f"{name}_{of}_sd"]) for name in MEASURES for of in REFERENCES]
        for row in rows_of(table)
    ]
    return pandas.DataFrame(lines, columns=heading)


def main() -> None:
    """Write `captions` as CSV, Markdown and LaTeX."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="prediction records")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    table = summarise(read_tables(arguments.predictions))
    over = "folds and seeds" if "folds" in table else "seeds"
    about = (
        f"Generated captions of validation images, in per cent, mean ± standard deviation over {over}. Each metric is "
        "computed with the caption of the image itself and with that of another image, which scores only shared style."
    )
    write_table(arguments.out / "captions", table, shown(table), "Captions", about)


if __name__ == "__main__":
    run_step(main)
