"""One question about one image, asked by hand: a checkpoint's answer, that of look-ups, and what training has seen.

What is computed is what a study computes: the image is read, fitted and encoded as those of its data are, and answers
come from the same functions as its predictions and its baselines.
"""

import json
import math
from argparse import Namespace
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.config import paths
from triptych.config.arms import BASELINES, HELD_OUT
from triptych.config.grid import SHARED, Checkpoint, cut_of
from triptych.config.jobs import PredictionJob
from triptych.config.study import Study
from triptych.data.boxed import Box, asked_for
from triptych.data.duplicates import normalised, read_thumbnails
from triptych.data.images import decode, inspect
from triptych.data.questions import questions_by_part
from triptych.errors import TriptychError
from triptych.evaluate.generate import generate
from triptych.evaluate.occlusion import answer_drops
from triptych.evaluate.respondent import Respondent
from triptych.features.occluded import views
from triptych.features.store import image_encoder
from triptych.io.manifest import sha256_bytes
from triptych.io.parquet import read_table
from triptych.model.architectures import context_tokens
from triptych.model.tokens import Sample, require_context
from triptych.utils.device import mixed_precision

ASKED = "asked"  # id of the image and of the question that are asked
LOOKUPS = ("majority-per-question", "nearest-images")
# Parts of a split in words; the first that an image belongs to counts.
PARTS = {
    "train": "in the training part",
    "validation": "in the validation part",
    "test": "held out",
    "": "in the source's own test part",
}


@dataclass(frozen=True)
class Sent:
    """An image that is asked about.

    Attributes:
        image: upright, in RGB.
        sha256: of the bytes that a data set would keep.
        thumbnail: (1024,) of mean 0 and length 1: products with others are correlations.
    """

    image: Image.Image
    sha256: str
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Known:
    """What a study's data hold of an image and a question.

    Attributes:
        image: where the image is, in words.
        question: how often the question was asked in training, in words.
        trained_on: the image, or one that looks like it, was in the training part of a stage.
        row: the question's row of the data with folds, where image and question are there.
    """

    image: str
    question: str
    trained_on: bool
    row: dict | None


@dataclass(frozen=True)
class Answer:
    """What a checkpoint answers, and what stands beside it.

    Attributes:
        text: the answer.
        probability: that the model gives to the whole of it, its end included; 0 to 1.
        whole: it ended by itself, before `evaluation.max_new_tokens`.
        lookups: baseline -> answer.
        known: what the data hold of the image and the question.
    """

    text: str
    probability: float
    whole: bool
    lookups: dict[str, str]
    known: Known


def read_image(data: bytes, study: Study) -> Sent:
    """Read an image as the study's data with folds are read.

    Raises:
        TriptychError: it is no image, damaged, or beyond the data set's limits (min_side, max_pixels).
    """
    limits = study.datasets[study.settings.folds.dataset]
    found = inspect(data, limits.min_side, limits.max_pixels)
    thumbnail = normalised(found.thumbnail[None])[0]
    return Sent(decode(found.data, min_side=1), sha256_bytes(found.data), thumbnail)


class Answerer:
    """One checkpoint of a study, loaded once for all that it is asked.

    Attributes:
        cell: the checkpoint's place in the grid.
        manifest: path of its manifest.
        respondent: its models.
        encode: from images (RGB) to vision features.
    """

    def __init__(self, study: Study, cell: Checkpoint):
        """Load a checkpoint.

        Raises:
            TriptychError: it answers no questions, because it was trained on captions alone; it is not finished, or
                something that it needs is missing or damaged.
        """
        self.study, self.cell = study, cell
        dataset = study.settings.folds.dataset
        if cell.split == SHARED:
            raise TriptychError(
                f"{study.checkpoint(cell)}: was trained on captions alone, and answers no questions; name a checkpoint "
                f"of a schedule with a stage on {dataset} ({', '.join(study.grid.schedules)})"
            )
        behind = study.grid.prefixes[cell.prefix]
        self.manifest = study.checkpoint(cell, paths.CHECKPOINT)
        self.data = study.path(paths.DATA, dataset=dataset).parent
        inputs = Namespace(
            checkpoint=self.manifest,
            data=study.path(paths.FOLDS, dataset=dataset, cut=cut_of(cell.split)),
            features=study.path(paths.FEATURES, dataset=study.grid.features(dataset, cell.prefix), tag=""),
            vision_encoder=study.path(paths.MODEL, role=behind.vision_encoder, tag=""),
            language_model=study.path(paths.MODEL, role=behind.language_model, tag=""),
        )
        self.respondent = Respondent(inputs, PredictionJob.of(study, HELD_OUT))
        self.encode = image_encoder(self.respondent.features, self.respondent.encoder, self.respondent.device)

    def answer(self, sent: Sent, question: str) -> Answer:
        """Answer a question about an image.

        Raises:
            TriptychError: the question is empty, holds a control token, or does not fit into the model's context.
        """
        if not question.strip():
            raise TriptychError("the question is empty")
        model, job = self.respondent.model, self.respondent.job
        sample = self.sample(question, "")
        features = None if model.blind else self.encode([sent.image])
        image_tokens = 0 if features is None else model.image_tokens(features)
        prefix = len(self.respondent.prompt.before_image) + image_tokens
        require_context([sample], prefix, context_tokens(model.decoder.config), job.max_new_tokens)
        with mixed_precision(job.precision, self.respondent.device):
            [tokens], [logprob] = generate(
                model, [sample], lambda names: features, self.respondent.prompt, job.max_new_tokens
            )
        text = self.respondent.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        whole, known = len(tokens) < job.max_new_tokens, self.known(sent, question)
        probability = math.exp(min(logprob, 0.0))  # rounding may end above 0
        return Answer(text, probability, whole, self.look_up(sent, question, known), known)

    def where(self, sent: Sent, question: str, answer: str, grid: int) -> list[float]:
        """Compute what an answer's log-probability loses with each of grid x grid squares grey, row by row.

        Raises:
            TriptychError: the model sees no image, or question and answer do not fit into its context.
        """
        if self.respondent.model.blind:
            raise TriptychError(f"{self.manifest}: a blind schedule is shown no image, and so looks nowhere")
        tokens, sample = self.encode(list(views(sent.image, grid))), self.sample(question, answer)
        own = self.respondent
        [logprob], [drops] = answer_drops(
            own.model, [sample], tokens.__getitem__, len(tokens), own.prompt, own.job.precision
        )
        if math.isnan(logprob):
            raise TriptychError(f"answer {answer!r}: too long for the language model's context")
        return drops.tolist()

    def boxes(self, known: Known) -> list[Box]:
        """Give the boxes in pixels of what a known question asks for; none where there is none."""
        if known.row is None:
            return []
        rows = read_table(self.data / "images", ["id", "boxes"])
        [stored] = [row["boxes"] for row in rows if row["id"] == known.row["image_id"]]
        return asked_for(known.row, json.loads(stored or "[]"))

    def sample(self, question: str, answer: str, image: str = ASKED) -> Sample:
        """Tokenise a question and an answer.

        Raises:
            TriptychError: one holds a control token that the tokenizer cannot read as text.
        """
        prompt = self.respondent.prompt
        return Sample(image, image, prompt.encode_question(question.strip()), prompt.encode_answer(answer.strip()))

    def look_up(self, sent: Sent, question: str, known: Known) -> dict[str, str]:
        """Ask the look-ups, which answer from the training part of the checkpoint's fold."""
        row = {**dict.fromkeys(("content_type", "answer_type"), ""), **(known.row or {})}
        row |= {"image_id": ASKED, "question": question.strip()}
        vectors = {**self._vectors, ASKED: sent.thumbnail}
        return {name: BASELINES[name].load()(self._parts["train"], vectors)(row) for name in LOOKUPS}

    def known(self, sent: Sent, question: str) -> Known:
        """Look an image and a question up in all data of the checkpoint's stages, which may have trained nothing."""
        behind, folded = self.study.grid.prefixes[self.cell.prefix], self.study.settings.folds.dataset
        stages = [behind.settings.stages[stage] for stage in behind.stages]
        trained = {stage.data for stage in stages if stage.train}
        found = {name: self._of_image(sent, name) for name in dict.fromkeys([folded, *(one.data for one in stages)])}
        where = min(found.values(), key=lambda one: one[0])
        own = found[folded][2]
        asked = [row for row in self._parts["train"] if row["question"] == question.strip()]
        images = {row["image_id"] for row in asked}
        place = "in training" if folded in trained else "in the training part, on which nothing was trained,"
        often = f"asked {place} about {len(images)} images" if asked else f"not asked {place.rstrip(',')}"
        if own and own in images:
            often += ", and about this one"
        rows = (row for part in self._parts.values() for row in part if row["image_id"] == own)
        row = next((row for row in rows if row["question"] == question.strip()), None)
        return Known(where[1], often, any(found[name][0] == 0 for name in trained), row)

    def _of_image(self, sent: Sent, dataset: str) -> tuple[int, str, str | None]:
        """Say where an image is in a data set: rank (0: trained on), words, and its id where it is the same image."""
        folder = self.study.path(paths.DATA, dataset=dataset).parent
        images, thumbnails = self._images if folder == self.data else read_normalised(folder)
        parts = self._parts if folder == self.data else questions_by_part(folder, SHARED)
        split = f" of {self.cell.split}" if folder == self.data else ""
        part_of = {row["image_id"]: part for part in reversed(PARTS) for row in parts.get(part, ())}
        same = [row["id"] for row in images if row["sha256"] == sent.sha256 and row["id"] in part_of]
        rank, own, words = len(PARTS), None, []
        if same:
            rank, own = min((list(PARTS).index(part_of[image]), image) for image in same)
            part = part_of[own]
            words.append(f"{own} of {dataset}, {PARTS[part]}{split if part else ''}")
        if rank > 0 and (like := self._like(sent, images, thumbnails, part_of)):
            correlation, image = like
            words.append(f"looks like {image} of {dataset}, {PARTS['train']}{split} (correlation {correlation:.3f})")
            rank = 0
        return rank, "; ".join(words) or "not among the study's images", own

    def _like(
        self, sent: Sent, images: list[dict], thumbnails: np.ndarray, part_of: dict[str, str]
    ) -> tuple[float, str] | None:
        """Find the image of the training part that looks most like another: correlation and id, where one does."""
        similarity = thumbnails @ sent.thumbnail
        trained = [(float(value), row["id"]) for value, row in zip(similarity, images, strict=True)
                   if part_of.get(row["id"]) == "train"]  # fmt: skip
        most = max(trained, default=(0.0, ""))
        return most if most[0] > self.study.settings.folds.near_duplicate else None

    @cached_property
    def _parts(self) -> dict[str, list[dict]]:
        return questions_by_part(self.data, self.cell.split)

    @cached_property
    def _images(self) -> tuple[list[dict], np.ndarray]:
        return read_normalised(self.data)

    @cached_property
    def _vectors(self) -> dict[str, np.ndarray]:
        images, thumbnails = self._images
        return dict(zip((row["id"] for row in images), thumbnails, strict=True))


def read_normalised(data: Path) -> tuple[list[dict], np.ndarray]:
    """Read the images of a data set, and their thumbnails (N, 1024) of mean 0 and length 1."""
    images, thumbnails = read_thumbnails(data / "images")
    return images, normalised(thumbnails)
