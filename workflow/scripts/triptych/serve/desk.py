"""Checkpoints that are loaded once, and what the page shows of their answers."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from triptych.commands.ask import lines, looks, record
from triptych.config.evaluation import Occlusion
from triptych.config.grid import Checkpoint
from triptych.config.study import Study
from triptych.errors import TriptychError
from triptych.evaluate.asking import Answerer, Sent, read_image
from triptych.evaluate.occlusion import picture

SHOWN = 1024  # pixels of the longer side of a picture in the page, at most


class LoadedCheckpoints:
    """Checkpoints of a study that answer what is asked in the page (a `server.Desk`)."""

    def __init__(self, study: Study, chosen: Sequence[tuple[Checkpoint, str]]):
        """Load checkpoints, each with the reason why it was chosen; prints a line for each.

        Raises:
            TriptychError: one answers no questions, or something that it needs is missing or damaged.
        """
        self.study, self.asked = study, []
        for number, (cell, why) in enumerate(chosen, 1):
            print(f"loading {number}/{len(chosen)}: {study.checkpoint(cell)}{f' ({why})' if why else ''}", flush=True)
            self.asked.append((Answerer(study, cell), why))

    def checkpoints(self) -> list[dict]:
        """Describe the checkpoints, in the order of their answers."""
        return [
            {
                "schedule": one.cell.prefix,
                "split": one.cell.split,
                "seed": one.cell.seed,
                "folder": str(one.manifest.parent),
            }
            for one, _ in self.asked
        ]

    def answers(self, data: bytes, question: str) -> dict:
        """Ask every checkpoint: the image as it is read, and records as those of `triptych ask --json`.

        Raises:
            TriptychError: the bytes are no image that the study reads, or the question cannot be asked.
        """
        sent = self._read(data)
        found = [record(one, why, one.answer(sent, question)) for one, why in self.asked]
        return {"image": png(sent.image), "answers": found}

    def where(self, data: bytes, question: str, checkpoint: int) -> dict:
        """Draw where one checkpoint looks: a picture, and in words the square that matters most.

        Raises:
            TriptychError: as `answers`, or the checkpoint is shown no image.
        """
        sent, (one, why) = self._read(data), self.asked[checkpoint]
        answer = one.answer(sent, question)
        grid = (self.study.settings.evaluation.occlusion or Occlusion()).grid
        looked = looks(one, sent, question, answer, None, grid)
        words = dict(lines(record(one, why, answer) | {"where": looked}))["where"]
        return {"picture": png(picture(sent.image, looked["drops"], looked["boxes"])), "words": words}

    def _read(self, data: bytes) -> Sent:
        try:
            return read_image(data, self.study)
        except TriptychError as error:
            raise TriptychError(f"The image cannot be used: {error}") from None


def png(image: Image.Image) -> str:
    """Give a picture, made smaller if it is large, as an address that holds it."""
    image = image.copy()
    image.thumbnail((SHOWN, SHOWN))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
