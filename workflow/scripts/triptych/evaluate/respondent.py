"""One checkpoint that answers: loaded once for all views of its questions."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from triptych.config.arms import CONTROLS, HELD_OUT
from triptych.config.jobs import PredictionJob
from triptych.data.questions import asked_questions
from triptych.evaluate.controls import Shown, own
from triptych.evaluate.generate import ReadFeatures, SharedPrefixes, generate, run_prefixes
from triptych.evaluate.predictions import PartialPredictions, answer_record, partial_path
from triptych.features.store import Features
from triptych.io.manifest import read_json, sha256_file, sha256_json
from triptych.model import checkpoint
from triptych.model.architectures import context_tokens
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import Sample, prompt_tokens, require_context, tokenise
from triptych.utils.arguments import folder
from triptych.utils.device import best_device, compute_dtype, mixed_precision


@dataclass(frozen=True)
class Asked:
    """A view that is still to be answered: rows of the question table, as many samples, and what they show."""

    view: str
    out: Path
    questions: list[dict]
    samples: list[Sample]
    shown: Shown
    kept: PartialPredictions


class Respondent:
    """One checkpoint with all that it answers with, loaded once for all views."""

    def __init__(self, arguments: Namespace, job: PredictionJob):
        """Load models, features and questions that the command line names."""
        self.job, self.data, self.encoder = job, folder(arguments.data), folder(arguments.vision_encoder)
        self.device = best_device()
        self.dtype = compute_dtype(job.precision, self.device)
        self.features = Features(folder(arguments.features))
        language_model = folder(arguments.language_model)
        base = checkpoint.Base(language_model, self.features.hidden_size, self.features.encoder)
        self.manifest, self.sha256 = read_json(arguments.checkpoint), sha256_file(arguments.checkpoint)
        self.model = checkpoint.load(base, arguments.checkpoint, self.dtype, self.device)
        self.tokenizer = load_tokenizer(language_model)
        self.prompt = prompt_tokens(self.tokenizer, load_prompt(language_model))
        self._questions: dict[str, tuple[list[dict], list[Sample]]] = {}
        self._prefixes: dict[tuple[ReadFeatures, tuple[str, ...]], SharedPrefixes] = {}

    def ask(self, view: str, out: Path) -> Asked:
        """Prepare a view, with what an attempt at the same view left.

        Raises:
            TriptychError: a question with its answer does not fit into the model's context.
        """
        part = HELD_OUT if view in CONTROLS else view
        if part not in self._questions:
            rows = asked_questions(self.data, self.manifest["split"], part, self.job.limit)
            self._questions[part] = rows, tokenise(rows, self.prompt)
        rows, samples = self._questions[part]
        show = partial(CONTROLS[view].load(), encoder=self.encoder, device=self.device) if view in CONTROLS else own
        shown = show(rows, self.features)
        asked = [place for place, row in enumerate(rows) if row["image_id"] not in shown.left_out]
        rows, samples = [rows[place] for place in asked], [samples[place] for place in asked]
        first = shown.of[rows[0]["image_id"]]
        image_tokens = 0 if self.model.blind else self.model.image_tokens(shown.read([first]))
        prefix, config = len(self.prompt.before_image) + image_tokens, self.model.decoder.config
        require_context(samples, prefix, context_tokens(config), self.job.max_new_tokens)
        settings = {**self.job.model_dump(), "view": view}
        key = sha256_json([settings, self.sha256, rows, self.device.type, str(self.dtype)])
        kept = PartialPredictions(partial_path(out), key, self.job.batch_size, len(rows))
        return Asked(view, out, rows, samples, shown, kept)

    def answer(self, asked: Asked) -> Iterator[int]:
        """Answer what is left of a view, and yield the number of questions of each batch when it is kept."""
        images = tuple(sorted(set(asked.shown.of.values())))
        prefixes = self._prefixes.get((asked.shown.read, images))
        if prefixes is None:
            run_images = partial(run_prefixes, self.model, asked.shown.read, self.prompt)
            prefixes = self._prefixes[asked.shown.read, images] = SharedPrefixes(run_images, images)
        run = (self.manifest["prefix"], self.manifest["split"], self.manifest["seed"])
        for position in range(len(asked.kept.records), len(asked.samples), self.job.batch_size):
            batch = slice(position, position + self.job.batch_size)
            with mixed_precision(self.job.precision, self.device):
                answers, logprobs = generate(
                    self.model,
                    asked.samples[batch],
                    asked.shown.read,
                    self.prompt,
                    self.job.max_new_tokens,
                    None if self.model.blind else lambda names: prefixes([asked.shown.of[name] for name in names]),
                )
            texts = [self.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
            asked.kept.add(
                [
                    answer_record(row, *run, text, len(answer), logprob, asked.view)
                    for row, text, answer, logprob in zip(asked.questions[batch], texts, answers, logprobs, strict=True)
                ]
            )
            yield len(texts)
