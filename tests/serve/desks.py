"""A page whose answers are made up: what it is asked is recorded, and nothing is loaded."""

import threading
from contextlib import contextmanager

from triptych.errors import TriptychError
from triptych.serve.server import PageServer

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
MARKUP = "<b id=markup>b</b>"


def answer(schedule: str, text: str, probability: float, seen: bool, sees_image: bool = True) -> dict:
    """A record as `commands.ask.record` gives it."""
    return {
        "checkpoint": f"results/checkpoints/{schedule}/fold0/seed0/manifest.json",
        "schedule": schedule,
        "split": "fold0",
        "seed": 0,
        "chosen": None,
        "sees_image": sees_image,
        "answer": text,
        "probability": probability,
        "whole": True,
        "lookups": {"majority-per-question": "yes", "nearest-images": MARKUP},
        "image_known": "not among the study's images",
        "trained_on_image": seen,
        "question_known": "asked in training about 3 images",
        "gold": None,
    }


class Desk:
    """Two checkpoints that answer at once, and fail where they are asked to."""

    def __init__(self):
        self.asked, self.error = [], None

    def checkpoints(self):
        both = ("1-2-3", "2-3")
        return [{"schedule": name, "split": "fold0", "seed": 0, "folder": f"results/{name}"} for name in both]

    def _take(self, *asked):
        self.asked.append(asked)
        if self.error:
            raise self.error

    def answers(self, data, question):
        self._take(data, question)
        both = [answer("1-2-3", MARKUP, 0.875, True), answer("2-3", "no", 0.5, False, sees_image=False)]
        return {"image": PIXEL, "answers": both}

    def where(self, data, question, checkpoint):
        self._take(data, question, checkpoint)
        return {"picture": PIXEL, "words": "'yes': 0.42 nats less without square 1 from the left, 2 from the top"}


class NoImage(Desk):
    """Checkpoints to which nothing is an image."""

    def answers(self, data, question):
        raise TriptychError("The image cannot be used: a text, not an image")


@contextmanager
def served(desk):
    """Serve a page of these answers on a free port."""
    with PageServer(0) as server:
        server.desk = desk
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
