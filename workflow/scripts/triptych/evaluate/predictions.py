"""Records of answers: one for each question that an arm was asked."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from triptych.config.jobs import View
from triptych.data.schemas import QUESTION_COLUMNS
from triptych.io.atomic import write_text
from triptych.io.manifest import canonical_json, sha256_bytes


def _line(record: dict) -> str:
    """A record as a line of text, with its own hash."""
    text = canonical_json(record)
    return f"{text} {sha256_bytes(text.encode())}"


def partial_path(out: Path) -> Path:
    """Give the path of what is answered so far."""
    return out.with_suffix(".part.jsonl")


class PartialPredictions:
    """Answers of the batches answered so far, in a file beside the result, so that a killed prediction goes on.

    The file stays until all views of its job are answered: of a job that fails, Snakemake removes or restores results.
    """

    def __init__(self, path: Path, key: str, batch_size: int, total: int):
        """Read what an attempt at the same job, of `total` records, left; anything else in the file is dropped."""
        self.path = path
        self.records: list[dict] = []
        # Not `splitlines`, which also splits at some characters within a text.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
        if lines[0] == key:
            for line in lines[1:]:
                text, _, told = line.rpartition(" ")
                if sha256_bytes(text.encode()) != told:  # the line that was being written, or a damaged one
                    break
                self.records.append(json.loads(text))
        # Whole batches only: what an answer is batched with may decide its last bits.
        if len(self.records) != total:
            del self.records[len(self.records) // batch_size * batch_size :]
        write_text(path, "".join(f"{line}\n" for line in (key, *map(_line, self.records))))

    def add(self, records: Sequence[dict]) -> None:
        """Keep the records of a batch."""
        self.records += records
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{_line(record)}\n" for record in records)


def answer_record(
    question: dict,
    arm: str,
    split: str,
    seed: int | None,
    answer: Mapping,
    view: View = "held-out",
) -> dict:
    """A row of RECORD_SCHEMA: one arm's answer to one question, kept so that scores can be computed again.

    Args:
        question: row of the question table.
        arm: name of the schedule or baseline.
        split: the fold.
        seed: the run's seed; None for what is not trained.
        answer: `prediction` and, where it was generated, its length in `tokens`, `logprob` (natural logarithm of its
            probability), and `constrained` if the study asks for it.
        view: which image was shown.
    """
    asked = {name: question[name] for name in QUESTION_COLUMNS}
    run = {"arm": arm, "view": view, "split": split, "seed": seed}
    return {**run, **asked, "gold": question["answer"], **answer}
