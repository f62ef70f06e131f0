"""Ask a trained model a question about an image: `triptych ask`."""

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from triptych.config import paths
from triptych.config.evaluation import Occlusion
from triptych.config.grid import SHARED, Checkpoint
from triptych.config.study import Study, read_study
from triptych.data.image_table import ImageTable
from triptych.errors import TriptychError, run_step
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.utils.arguments import add_configfile, folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from triptych.evaluate.asking import Answer, Answerer, Sent

DEVICE = "TRIPTYCH_DEVICE"  # by which the workflow hands `runtime.device` to its steps, too


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych ask`."""
    parser = argparse.ArgumentParser(
        prog="triptych ask",
        description=main.__doc__,
        epilog='example: triptych ask scan.png "Is the liver visible?" --configfile config/demo.yaml',
    )
    parser.add_argument(
        "image", help="an image file of any format that Triptych reads, or the number of a question of the study"
    )
    parser.add_argument("question", nargs="?", help="the question, in quotes; with a number, that of the data")
    add_configfile(parser)
    add_choice(parser)
    parser.add_argument(
        "--answer", help="the answer that --where is about; default: the right one in the data, else the model's own"
    )
    parser.add_argument(
        "--where", type=Path, metavar="PNG", help="draw which parts of the image the answer depends on into this file"
    )
    parser.add_argument(
        "--grid",
        type=int,
        help="squares along each side of the image for --where; default: the study's evaluation.occlusion.grid, else 7",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")
    return parser


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose checkpoints to a command line."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--checkpoint",
        type=Path,
        nargs="+",
        default=[],
        metavar="MANIFEST",
        help="manifest.json, or folder, of one or more checkpoints of the study; default: the finished checkpoint of a "
        "schedule's last stage that is best on its validation part",
    )
    choice.add_argument(
        "--compare", nargs=2, metavar="SCHEDULE", help="two schedules, on the fold and seed on which the first is best"
    )


def chosen(
    study: Study, checkpoints: Sequence[Path], compare: Sequence[str] | None, splits: Sequence[str] = ()
) -> list[tuple[Checkpoint, str]]:
    """Choose the checkpoints that are asked, each with the reason in words, empty where the user named it.

    Args:
        study: the study.
        checkpoints: folders or manifests, where the user names them.
        compare: two schedules, where the user names them.
        splits: folds whose checkpoints are preferred; empty: all are equal.

    Raises:
        TriptychError: one is not of the study, or not finished.
    """
    if checkpoints:
        return [(_cell(study, path), "") for path in checkpoints]
    for name in compare or ():
        if name not in study.grid.schedules:
            raise TriptychError(f"--compare: '{name}' is no schedule of the study ({', '.join(study.grid.schedules)})")
    if not compare:
        found = finished(study, study.grid.schedules, splits)
        cell, manifest = found[0]
        accuracy = 100 * manifest["metrics"]["validation_accuracy"]
        return [(cell, f"best of {len(found)} on validation: {accuracy:.1f} %")]
    first, second = (
        {(cell.split, cell.seed): cell for cell, _ in finished(study, [name], splits)} for name in compare
    )  # fmt: skip
    both = [run for run in first if run in second]
    if not both:
        raise TriptychError(f"--compare: {' and '.join(compare)} have no fold and seed that both have finished")
    why = f"of {len(both)} runs that both have finished, {compare[0]} is best on this one" if len(both) > 1 else ""
    return [(cells[both[0]], why) for cells in (first, second)]


def finished(study: Study, schedules: Sequence[str], splits: Sequence[str] = ()) -> list[tuple[Checkpoint, dict]]:
    """List the finished checkpoints of schedules that answer questions, with their manifests, the best first.

    Those of `splits` alone, where there are any. The best has the highest exact match on its own validation part, then
    the lowest loss.

    Raises:
        TriptychError: there is none.
    """
    found = []
    for cell in study.grid.checkpoints:
        path = study.checkpoint(cell, paths.CHECKPOINT)
        if cell.prefix in schedules and cell.split != SHARED and path.exists():
            found.append((cell, read_json(path)))
    if not found:
        raise TriptychError(
            f"{study.results}: no finished checkpoint of {', '.join(schedules)} answers questions; run the study "
            "first, name another with --configfile, or start in the folder in which it ran"
        )

    def merit(one: tuple[Checkpoint, dict]) -> tuple[float, float]:
        metrics = one[1]["metrics"]
        return -metrics["validation_accuracy"], metrics["validation_loss"]

    preferred = [one for one in found if one[0].split in splits]
    return sorted(preferred or found, key=merit)


def _cell(study: Study, path: Path) -> Checkpoint:
    """Find the place in the grid of a checkpoint that is named by its folder or manifest."""
    asked = folder(path).resolve()
    cell = next((cell for cell in study.grid.trainings if study.checkpoint(cell).resolve() == asked), None)
    if cell is None:
        raise TriptychError(
            f"{path}: is no checkpoint of the study, whose checkpoints are in {study.results / 'checkpoints'}; name "
            "one of them, or their study with --configfile"
        )
    if not (asked / "manifest.json").is_file():
        raise TriptychError(f"{path}: the checkpoint is not finished; `triptych status` shows how far it is")
    return cell


class Given(NamedTuple):
    """What is asked: the bytes of an image, a question, and the folds that hold both out (empty: not of the study)."""

    image: bytes
    question: str
    splits: list[str]


def read_given(study: Study, name: str, question: str | None) -> Given:
    """Read an image file or, where no question is given, a question of the study's data by its number.

    Raises:
        TriptychError: there is no such file or question.
    """
    if question is not None:
        if not Path(name).is_file():
            raise TriptychError(f"{name}: no such file; name an image")
        return Given(Path(name).read_bytes(), question, [])
    folded = study.settings.folds.dataset
    data = study.path(paths.DATA, dataset=folded).parent
    rows = [row for row in read_table(data / "questions.parquet") if row["question_id"] == name]
    if not rows:
        raise TriptychError(f"{name}: no question of {folded} has this number; for an image file, add a question")
    [row] = rows
    images = ImageTable(data / "images")
    image = images.file(images.image_ids.index(row["image_id"]))
    parts = [one for one in read_table(data / "folds.parquet") if one["question_id"] == name]
    return Given(image, row["question"], [one["fold"] for one in parts if one["part"] == "test"])


def record(answerer: "Answerer", why: str, answer: "Answer") -> dict:
    """Give an answer as a JSON record."""
    known = answer.known
    return {
        "checkpoint": str(answerer.manifest),
        "schedule": answerer.cell.prefix,
        "split": answerer.cell.split,
        "seed": answerer.cell.seed,
        "chosen": why or None,
        "sees_image": not answerer.respondent.model.blind,
        "answer": answer.text,
        "probability": answer.probability,
        "whole": answer.whole,
        "lookups": answer.lookups,
        "image_known": known.image,
        "trained_on_image": known.trained_on,
        "question_known": known.question,
        "gold": known.row and known.row["answer"],
    }


def lines(found: dict) -> list[tuple[str, str]]:
    """Give a record as names and values for a terminal."""
    cut = "" if found["whole"] else ", cut off at evaluation.max_new_tokens"
    blind = "" if found["sees_image"] else "; a blind schedule, which is shown no image"
    shown = [
        ("checkpoint", found["checkpoint"] + (f" ({found['chosen']})" if found["chosen"] else "") + blind),
        ("image", found["image_known"]),
        ("question", found["question_known"]),
        ("answer", f"{found['answer']}  (probability {100 * found['probability']:.1f} %{cut})"),
        *found["lookups"].items(),
    ]
    if looked := found.get("where"):
        shown.append(("where", f"'{looked['answer']}': {most_needed(looked['drops'], looked['grid'])}"))
    return shown + ([("right, in the data", found["gold"])] if found["gold"] else [])


def most_needed(drops: Sequence[float], grid: int) -> str:
    """Name the square without which the log-probability (nats) loses most."""
    most = max(range(len(drops)), key=drops.__getitem__)
    if drops[most] <= 0:
        return "without no square less probable"
    row, column = divmod(most, grid)
    square = f"square {column + 1} from the left, {row + 1} from the top"
    return f"{math.exp(-drops[most]):.2f} times as probable without {square} ({drops[most]:.2f} nats less)"


def looks(answerer: "Answerer", sent: "Sent", question: str, answer: "Answer", about: str | None, grid: int) -> dict:
    """Compute where a checkpoint looks: the answer that it is about, what that loses by square, and known boxes."""
    row = answer.known.row
    about = about or (row["answer"] if row else answer.text)
    drops = answerer.where(sent, question, about, grid)
    return {"answer": about, "grid": grid, "drops": drops, "boxes": answerer.boxes(answer.known)}


def side_by_side(pictures: "Sequence[Image]") -> "Image":
    """Join pictures of one size into one."""
    from PIL import Image

    width, height = pictures[0].size
    joined = Image.new("RGB", (width * len(pictures), height))
    for place, picture in enumerate(pictures):
        joined.paste(picture, (place * width, 0))
    return joined


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask a trained model a question about an image, beside what look-ups answer and what training has seen."""
    arguments = build_parser().parse_args(arguments)
    if arguments.grid is not None and not 2 <= arguments.grid <= 32:
        raise TriptychError(f"--grid: must be a number of squares from 2 to 32, not {arguments.grid}")
    asked = Path(arguments.image)  # or the number of a question
    if arguments.where and arguments.where.exists() and asked.exists() and arguments.where.samefile(asked):
        raise TriptychError(f"--where {arguments.where}: is the image itself; name another file")
    study = read_study(arguments.configfile)
    given = read_given(study, arguments.image, arguments.question)
    os.environ.setdefault(DEVICE, study.settings.runtime.device)
    cells = chosen(study, arguments.checkpoint, arguments.compare, given.splits)
    from triptych.evaluate.asking import Answerer, read_image  # torch, which takes seconds
    from triptych.evaluate.occlusion import picture

    try:
        sent = read_image(given.image, study)
    except TriptychError as error:
        raise TriptychError(f"{arguments.image}: {error}") from None
    grid = arguments.grid or (study.settings.evaluation.occlusion or Occlusion()).grid
    found, pictures = [], []
    for cell, why in cells:
        answerer = Answerer(study, cell)
        answer = answerer.answer(sent, given.question)
        found.append(record(answerer, why, answer))
        if arguments.where:
            looked = looks(answerer, sent, given.question, answer, arguments.answer, grid)
            pictures.append(picture(sent.image, looked["drops"], looked["boxes"]))
            found[-1]["where"] = looked
    if pictures:
        arguments.where.parent.mkdir(parents=True, exist_ok=True)
        side_by_side(pictures).save(arguments.where, "PNG")
    if arguments.json:
        said = {"image": arguments.image, "question": given.question, "answers": found}
        print(json.dumps(said, indent=2, ensure_ascii=False))
        return
    if arguments.question is None:
        print(f"{'asked':<22}{given.question}")
    for one in found:
        print("\n".join(f"{name:<22}{value}" for name, value in lines(one)) + ("\n" if one is not found[-1] else ""))


if __name__ == "__main__":
    run_step(main)
