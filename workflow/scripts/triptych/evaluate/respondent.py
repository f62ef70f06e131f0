"""One checkpoint that answers: loaded once for all views of its questions."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from triptych.config.arms import CONTROLS, HELD_OUT, TEST
from triptych.config.jobs import PredictionJob
from triptych.data.questions import asked_questions, load_questions
from triptych.data.schemas import CONSTRAINED
from triptych.errors import TriptychError
from triptych.evaluate.constrained import AnswerTree
from triptych.evaluate.controls import Shown, own
from triptych.evaluate.fixed_shapes import at_fixed_shapes
from triptych.evaluate.generate import ReadFeatures, RunPrefixes, SharedPrefixes, generate, prefixes_fit, run_prefixes
from triptych.evaluate.predictions import PartialPredictions, answer_record, partial_path
from triptych.features.store import Features, Pixels
from triptych.io.manifest import read_json, sha256_file, sha256_json
from triptych.model import checkpoint
from triptych.model.architectures import context_tokens
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import Sample, prompt_tokens, require_context, tokenise
from triptych.utils.arguments import folder
from triptych.utils.device import best_device, compute_dtype, mixed_precision


@dataclass(frozen=True)
class Asked:
    """A view that is still to be answered.

    Attributes:
        view: its name.
        out: Parquet file of its answers.
        questions: rows of the question table, in the order of that file.
        samples: the same, as tokens.
        different: samples that differ in question or in what is shown, in the order in which they are asked.
        answered_by: for each question, the place among `different` of the one whose answer is its own.
        shown: what is shown with them.
        prefixes: gives those of what is shown for images; None: of a blind model.
        kept: the answers so far, to `different`.
    """

    view: str
    out: Path
    questions: list[dict]
    samples: list[Sample]
    different: list[Sample]
    answered_by: list[int]
    shown: Shown
    prefixes: RunPrefixes | None
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
        base = checkpoint.Base(language_model, *self.features.identity, self.encoder)
        self.manifest, self.sha256 = read_json(arguments.checkpoint), sha256_file(arguments.checkpoint)
        self.model = checkpoint.load(base, arguments.checkpoint, self.dtype, self.device)
        if self.model.vision:
            self.features = Pixels(self.features, self.data, self.encoder)
        self.tokenizer = load_tokenizer(language_model)
        self.prompt = prompt_tokens(self.tokenizer, load_prompt(language_model))
        self._questions: dict[str, tuple[list[dict], list[Sample]]] = {}
        self._prefixes: dict[tuple[ReadFeatures, tuple[str, ...]], SharedPrefixes] = {}

    def ask(self, view: str, out: Path) -> Asked:
        """Prepare a view, with what an attempt at the same view left.

        A question that is shown the same thing several times, such as a grey image, is asked once. Questions are asked
        in the order of their length, because those of a batch are padded to the longest; where the prefixes of all
        images are too large to be kept, those of one image follow each other.

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
        image_tokens = 0 if self.model.blind else self.model.image_tokens(shown.read([shown.of[samples[0].image_id]]))
        prefix, config = len(self.prompt.before_image) + image_tokens, self.model.decoder.config
        require_context(samples, prefix, context_tokens(config), self.job.max_new_tokens)
        shared = prefixes_fit(self.model, prefix, len(set(shown.of.values())))
        asks = [("" if self.model.blind else shown.of[sample.image_id], sample.question) for sample in samples]
        different: dict[tuple, Sample] = {}
        for ask, sample in zip(asks, samples, strict=True):
            different.setdefault(ask, sample)
        order = sorted(different, key=lambda ask: len(ask[1])) if shared else list(different)
        places = {ask: place for place, ask in enumerate(order)}
        answered_by = [places[ask] for ask in asks]
        settings = {**self.job.model_dump(), "view": view}
        key = sha256_json([settings, self.sha256, rows, answered_by, self.device.type, str(self.dtype)])
        kept = PartialPredictions(partial_path(out), key, self.job.batch_size, len(order))
        prefixes = self._prefixes_of(shown, shared)
        return Asked(view, out, rows, samples, [different[ask] for ask in order], answered_by, shown, prefixes, kept)

    def answer(self, asked: Asked) -> Iterator[int]:
        """Answer what is left of a view, and yield the number of different questions of each batch when it is kept."""
        constrained = self.job.constrained and asked.view in (HELD_OUT, TEST)
        for position in range(len(asked.kept.records), len(asked.different), self.job.batch_size):
            batch = asked.different[position : position + self.job.batch_size]
            answers, logprobs = self._generate(asked, batch)
            records = [
                {"prediction": text, "tokens": len(answer), "logprob": logprob}
                for text, answer, logprob in zip(self._texts(answers), answers, logprobs, strict=True)
            ]
            if constrained:
                found = self._texts(self._constrain(asked, batch, answers))
                records = [record | {CONSTRAINED: text} for record, text in zip(records, found, strict=True)]
            asked.kept.add(records)
            yield len(records)

    def records(self, asked: Asked) -> list[dict]:
        """Give the records of a view that is answered, in the order of its questions."""
        run = (self.manifest["prefix"], self.manifest["split"], self.manifest["seed"])
        answers = [asked.kept.records[place] for place in asked.answered_by]
        return [
            answer_record(row, *run, answer, asked.view) for row, answer in zip(asked.questions, answers, strict=True)
        ]

    def _texts(self, answers: Sequence[Sequence[int]]) -> list[str]:
        return [self.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]

    def _generate(
        self, asked: Asked, samples: Sequence[Sample], tree: AnswerTree | None = None
    ) -> tuple[list[list[int]], list[float]]:
        """Answer some questions of a view, as `generate` does."""
        with mixed_precision(self.job.precision, self.device):
            return generate(
                self.model,
                samples,
                asked.shown.read,
                self.prompt,
                self.job.max_new_tokens,
                asked.prefixes,
                tree=tree,
            )

    def _prefixes_of(self, shown: Shown, shared: bool) -> RunPrefixes | None:
        """Build what gives the prefixes of a view's images: `shared` with other views of the same, or run anew."""
        if self.model.blind:
            return None
        run = partial(run_prefixes, self.model, shown.read, self.prompt)
        if shared:
            images = tuple(sorted(set(shown.of.values())))
            run = self._prefixes.setdefault((shown.read, images), SharedPrefixes(run, images))
        return lambda names: run([shown.of[name] for name in names])

    def _constrain(
        self, asked: Asked, samples: Sequence[Sample], answers: Sequence[Sequence[int]]
    ) -> list[Sequence[int]]:
        """Give the answers out of the training answers, beside the `answers` that the model gave freely.

        A free answer that is a training answer is what greedy choice gives among these, too; others are asked again.
        """
        candidates = self._candidates
        again = [place for place, answer in enumerate(answers) if (*answer, self.prompt.end) not in candidates]
        if not again:
            return list(answers)
        if at_fixed_shapes(None, self.device):  # layers are compiled for this number of rows already
            return self._generate(asked, samples, self._tree)[0]
        given = dict(zip(again, self._generate(asked, [samples[place] for place in again], self._tree)[0], strict=True))
        return [given.get(place, answer) for place, answer in enumerate(answers)]

    @cached_property
    def _candidates(self) -> frozenset[tuple[int, ...]]:
        """The answers of the training part that a free answer may be as long as, as tokens with their end."""
        rows = load_questions(self.data, self.manifest["split"], "train")
        found = {self.prompt.encode_answer(row["answer"]) for row in rows}
        fitting = frozenset(answer for answer in found if len(answer) <= self.job.max_new_tokens)
        if not fitting:
            raise TriptychError(
                "evaluation.constrained: no training answer is as short as evaluation.max_new_tokens "
                f"({self.job.max_new_tokens}, its end included) allows; set a larger number"
            )
        return fitting

    @cached_property
    def _tree(self) -> AnswerTree:
        return AnswerTree.of(sorted(self._candidates), self.device)
