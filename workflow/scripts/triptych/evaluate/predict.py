"""Step: greedy answers of a checkpoint to one or more views of its questions; a record is kept of each question.

Everything is loaded once. Views that are answered already, from the same settings and inputs, stay as they are; where
all are, torch is not even loaded. Further checkpoints may be asked in the same process.
"""

import argparse
import gc
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.config.arms import CAPTIONS, HELD_OUT, PARTS, question_views
from triptych.config.jobs import PredictionJob
from triptych.config.runtime import Runtime
from triptych.data.schemas import GOLD_COLUMNS, RECORD_SCHEMA
from triptych.errors import message_of, run_step
from triptych.evaluate.answered import is_answered, keep, kept_path, restore, write_answered
from triptych.evaluate.predictions import partial_path
from triptych.io.manifest import sha256_file
from triptych.io.parquet import write_table

if TYPE_CHECKING:
    from triptych.evaluate.respondent import Asked, Respondent

INPUTS = ("checkpoint", "data", "features", "vision_encoder", "language_model")


def input_hashes(arguments: Namespace) -> dict[str, str]:
    """Give the SHA-256 of each input, a manifest or the folder of one, by its name on the command line."""
    paths = {name: getattr(arguments, name) for name in INPUTS}
    return {name: sha256_file(path / "manifest.json" if path.is_dir() else path) for name, path in paths.items()}


def main() -> None:
    """Write one checkpoint's answers to the questions of one or more views, a file for each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--job", required=True, help="settings as JSON")
    parser.add_argument("--data", type=Path, required=True, help="manifest of the data set, or record of its folds")
    parser.add_argument("--features", type=Path, required=True, help="manifest of the vision features")
    parser.add_argument("--vision-encoder", type=Path, required=True, help="manifest of the vision encoder")
    parser.add_argument("--language-model", type=Path, required=True, help="manifest of the language model")
    views = dict.fromkeys([*question_views(), CAPTIONS, *PARTS])
    parser.add_argument("--views", nargs="+", choices=list(views), required=True, help="what is asked")
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="Parquet file to write, one for each view")
    parser.add_argument(
        "--runtime", type=Runtime.model_validate_json, default=Runtime(), help="settings `runtime` as JSON"
    )
    parser.add_argument(
        "--also",
        type=Path,
        nargs="+",
        action="append",
        default=[],
        help="a further checkpoint of the same models, data and features, and a file for each view: where it is there, "
        "and this one was not answered before, it is asked, too, and its own job finds its answers",
    )
    arguments = parser.parse_args()
    job = PredictionJob.model_validate_json(arguments.job)
    for out in arguments.out:
        restore(out)
    if answer(arguments, job):
        for out in arguments.out:
            keep(out)
        for checkpoint, *out in arguments.also:
            if checkpoint.exists():
                ask_another(Namespace(**{**vars(arguments), "checkpoint": checkpoint, "out": out}), job)
    for out in arguments.out:  # not before: of a job that fails, Snakemake removes or restores the results
        partial_path(out).unlink(missing_ok=True)
        kept_path(out).unlink(missing_ok=True)


def answer(arguments: Namespace, job: PredictionJob) -> bool:
    """Write the answers of a checkpoint to the views that are not answered yet; tell whether there were any."""
    inputs = input_hashes(arguments)
    outs = dict(zip(arguments.views, arguments.out, strict=True))
    left = {view: out for view, out in outs.items() if not is_answered(out, job.text(), inputs)}
    ready = [view for view in outs if view not in left]
    if ready:
        print(f"answered already, and kept: {', '.join(ready)}", flush=True)
    if not left:
        return False
    from triptych.evaluate.ready import make_ready  # torch, which takes seconds
    from triptych.evaluate.respondent import Respondent

    for view in ready:
        keep(outs[view])
    respondent = Respondent(arguments, job)
    asked = [respondent.ask(view, out) for view, out in left.items()]
    gold = {one.view: gold_answers(respondent, one) for one in asked}  # before the model is made ready for answers
    first, total = sum(len(one.kept.records) for one in asked), sum(len(one.different) for one in asked)
    done = first
    batches = sum(-(-(len(one.different) - len(one.kept.records)) // job.batch_size) for one in asked)
    print(make_ready(respondent.model, arguments.runtime.compile, batches * job.max_new_tokens), flush=True)
    start = time.monotonic()
    for one in asked:
        for number in respondent.answer(one):
            done += number
            rate = (done - first) / (time.monotonic() - start)
            print(f"{done}/{total} questions, {rate:.1f}/s", flush=True)
        records = zip(respondent.records(one), gold[one.view], strict=True)
        write_table(one.out, [record | known for record, known in records], RECORD_SCHEMA)
        write_answered(one.out, job.text(), inputs)
    return True


def gold_answers(respondent: "Respondent", asked: "Asked") -> list[dict]:
    """Give the GOLD_COLUMNS of a view's questions; nothing for controls and captions, which are not compared."""
    from triptych.evaluate.gold import gold_logprobs

    if asked.view not in (HELD_OUT, *PARTS):
        return [{} for _ in asked.samples]
    model, precision = respondent.model, respondent.job.precision
    found = gold_logprobs(model, asked.samples, asked.shown.read, respondent.prompt, precision)
    if unknown := found.count(None):
        named = asked.questions[found.index(None)]["question_id"]
        print(
            f"gold answers: {unknown} of {len(found)} (such as that of question {named}) do not fit into the language "
            "model's context, and have no log-probability",
            flush=True,
        )
    values = zip((len(sample.answer) for sample in asked.samples), found, strict=True)
    return [dict(zip(GOLD_COLUMNS, value, strict=True)) for value in values]


def ask_another(arguments: Namespace, job: PredictionJob) -> None:
    """Answer for a further checkpoint; what goes wrong with it is left to its own job, which says so."""
    gc.collect()  # compiled layers refer to themselves: the last checkpoint's weights would stay in memory
    print(f"also asked in this process: {arguments.checkpoint}", flush=True)
    try:
        answer(arguments, job)
    except Exception as error:
        print(f"left to its own job: {message_of(error)}", flush=True)


if __name__ == "__main__":
    run_step(main)
