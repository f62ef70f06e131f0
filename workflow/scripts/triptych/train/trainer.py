"""The training of one stage: teacher forcing, mean cross-entropy over the answer tokens of each optimiser step."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from triptych.config.base import Precision
from triptych.config.runtime import Runtime
from triptych.config.stages import Stage
from triptych.errors import TriptychError
from triptych.model.architectures import context_tokens
from triptych.model.attention import row_tokens
from triptych.model.flex import is_flex
from triptych.model.packing import Batch, Shape, pack, split_by_image
from triptych.model.tokens import PromptTokens, Sample, require_context
from triptych.model.vlm import VisionLanguageModel
from triptych.train.activation_checkpointing import configure_checkpointing, encoder_bytes, largest_pass
from triptych.train.augmentation import augmented
from triptych.train.autosave import Autosaver
from triptych.train.buckets import plan_shapes
from triptych.train.compilation import compile_layers, compiled_layers_work, parameter_tokens
from triptych.train.copies import WeightCopies
from triptych.train.distributed import fail_together, rank, sum_gradients, world_size
from triptych.train.guards import GradientGuard, check_finite, check_norm_ratio, check_same_on_all_ranks, frozen_hash
from triptych.train.optimizer import make_optimiser, optimiser_bytes
from triptych.train.parameters import count_parameters, parameter_table, set_trainable
from triptych.train.progress import Meter, Progress
from triptych.train.readings import PassReading, StepReading, read
from triptych.train.regularisation import build_head, cosine_term
from triptych.train.route import Route, route_for
from triptych.train.sampling import epoch_batches, partition_for_ranks
from triptych.train.state import State, pack_tensors, unpack_tensors
from triptych.train.validation import Score, chosen_epoch, norm_ratio, score_answers, score_samples, smoothed
from triptych.utils.device import compute_dtype, mixed_precision
from triptych.utils.prefetch import map_ahead
from triptych.utils.seeds import derive_seed

VALIDATION_BATCH = 32  # samples; bounds the memory, and changes results by rounding only
STEP_TOKENS = 8192  # of one forward and backward pass; a step with more accumulates gradients over several passes
REFERENCE_SAMPLES = 8  # samples on which the norms of image tokens and text embeddings are compared
BEST = "best/"  # prefix of names in a saved state: the weights of the best epoch so far


class Trainer:
    """Trains one stage of a model in place.

    `setup` prepares the training and restores what an earlier attempt saved; `run` trains to the end. On the same kind
    of CPU, a training that was interrupted and resumed ends with the same bits as one that was not. Several
    processes (`train/distributed.py`) divide every step among them; dropout apart, the result is that of one process
    up to rounding.

    Attributes:
        trained: the trainable parameters by name, those of a regularisation's head included.
        progress: steps whose numbers have been read, and metrics so far.
        unread: steps done whose numbers are still on the device; none where anything is saved.
        shapes: of batches, where they are fixed.
        best: with `select: best`, the model's weights after the best epoch so far, on the CPU.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        training: Sequence[Sample],
        validation: Sequence[Sample],
        features: Callable[[Sequence[str]], torch.Tensor],
        prompt: PromptTokens,
        stage: Stage,
        precision: Precision,
        seed: int,
        key: Sequence[str],
        autosaver: Autosaver | None = None,
        runtime: Runtime = Runtime(),  # noqa: B008 (it cannot be changed)
        route: Route | None = None,
    ):
        """Store the inputs of a training; nothing is computed before `setup`.

        Args:
            model: on its device; what trains in fp32, the rest frozen.
            training: samples to learn from.
            validation: samples to validate on after every epoch.
            features: from image ids to vision features (R, N, D), or to pixels where the model has its own encoder.
            prompt: the fixed text.
            stage: what trains, and how.
            precision: of the products of matrices.
            seed: the run's seed.
            key: names that, with the seed, fix the order of samples and the dropout.
            autosaver: saves the training as it goes, and loads what an earlier attempt saved; None: nothing is saved.
            runtime: whether layers are compiled, and computed again in the backward pass.
            route: how the device computes; None: as `route_for` says.
        """
        self.model, self.training, self.validation = model, training, validation
        self.features, self.prompt, self.stage, self.precision = features, prompt, stage, precision
        self.seed, self.key, self.autosaver, self.runtime = seed, key, autosaver, runtime
        self.device = next(model.parameters()).device
        self.dtype = compute_dtype(precision, self.device)
        self.epochs = stage.epochs or 0  # none where nothing trains
        self.epoch_steps = -(-len(training) // stage.batch_size)
        self.steps = self.epochs * self.epoch_steps
        self.route = (route or route_for(self.device)).for_optimiser(stage.optimizer)
        self.progress = Progress()
        self.unread: list[StepReading] = []
        self.shapes: list[Shape] = []
        self.best: dict[str, torch.Tensor] = {}

    def setup(self) -> None:
        """Choose what trains, build the optimiser and the guards, and resume from the newest saved state, if any.

        Raises:
            TriptychError: the stage trains a part that the model lacks; a setting is not possible on this machine; the
                saved state is that of another model.
        """
        self.model.blind = self.stage.blind
        self.trained = set_trainable(self.model, self.stage.train, self.stage.vision.blocks)
        self._measure_images()
        self._add_regularisation()
        self._print_plan()
        self.copies = WeightCopies(self.model, self.dtype, self.route.copied_adapters)
        if self.steps:
            work = parameter_tokens(self.model, self.training, self.prefix_tokens, self.epochs)
            print(compile_layers(self.runtime.compile, self.model, work, self.steps, self.route), flush=True)
            self._configure_checkpointing()
        self._configure_packing()
        fused = self.route.fused_optimiser
        self.optimiser, self.lr_scheduler = make_optimiser(self.trained, self.stage, self.steps, fused)
        self.frozen_hash = frozen_hash(self.model)
        self.guard = GradientGuard(self.trained)
        process = [f"process {rank()}"] if rank() else []
        torch.manual_seed(derive_seed(self.seed, "dropout", *self.key, *process))
        if self.autosaver and (state := self.autosaver.load()):
            self.load_state_dict(state)
            epoch, step = min(self.progress.epoch, self.epochs), self.progress.step
            print(f"resuming at epoch {epoch}, step {step} of {self.steps}", flush=True)

    def _measure_images(self) -> None:
        """Count the tokens that an image takes, check that questions fit behind them, and prepare packing."""
        reference = self.training[:REFERENCE_SAMPLES]
        image_ids = list({sample.image_id: None for sample in reference})
        self.reference_features = None if self.stage.blind else self.features(image_ids)
        self.reference_tokens = torch.tensor([token for sample in reference for token in sample.text])
        self.image_tokens = 0 if self.stage.blind else self.model.image_tokens(self.reference_features)
        self.prefix_tokens = len(self.prompt.before_image) + self.image_tokens
        most = context_tokens(self.model.decoder.config)
        require_context([*self.training, *self.validation], self.prefix_tokens, most)

    def _add_regularisation(self) -> None:
        """Build the head of the stage's regularisation, which trains with the connector and is in no checkpoint."""
        seed = derive_seed(self.seed, "regularisation", *self.key)
        self.head = build_head(self.stage.regularisation, self.model, self.reference_features, seed)
        named = self.head.named_parameters() if self.head else ()
        self.head_parameters = {f"regularisation.{name}": parameter for name, parameter in named}
        self.trained |= self.head_parameters

    def _print_plan(self) -> None:
        images = f"{self.image_tokens} image tokens an image" if self.image_tokens else "no images"
        steps = f"{self.steps} steps of {self.stage.batch_size} samples in {self.epochs} epochs"
        print(parameter_table(count_parameters([*self.model.named_parameters(), *self.head_parameters.items()])))
        print(f"{steps}; {images}", flush=True)

    def _configure_checkpointing(self) -> None:
        """Choose gradient checkpointing, by the memory that attention takes as it is computed now."""
        size = largest_pass(self.training, self.prefix_tokens, self.stage.batch_size, STEP_TOKENS, self.model)
        reserved = optimiser_bytes(self.trained, self.stage) + encoder_bytes(self.model, size, self.prefix_tokens)
        setting, rest = self.runtime.gradient_checkpointing, (size, self.dtype.itemsize, reserved)
        print(configure_checkpointing(setting, self.model, *rest), flush=True)

    def _configure_packing(self) -> None:
        """Choose how samples become batches, the validation's too, and their shapes where these are fixed."""
        starts = range(0, len(self.validation), VALIDATION_BATCH)
        self.validation_batches = [self.validation[start : start + VALIDATION_BATCH] for start in starts]
        self.shapes = []
        if is_flex(self.model.decoder):
            epochs = [list(self._all_passes(epoch)) for epoch in range(1, self.epochs + 1)]
            self.shapes, self.validation_batches = plan_shapes(epochs, self.validation, self.prefix_tokens)
            print(f"batches of {', '.join(str(shape.tokens) for shape in self.shapes)} tokens", flush=True)
        self.pack = partial(
            pack,
            features=self.features,
            prompt=self.prompt,
            image_tokens=self.image_tokens,
            row_tokens=row_tokens(self.model.decoder),
            shapes=self.shapes,
            pinned=self.device.type == "cuda",
        )
        if self.shapes:
            batch = self.pack(next(self._all_passes(1)))
            with self.copies.in_use():
                works = compiled_layers_work(self.runtime.compile, self.model, batch, self.precision)
            if not works:
                self._configure_checkpointing()
                self._configure_packing()

    def run(self) -> Iterator[dict]:
        """Train to the end; after the last epoch, the model holds the weights that the stage selects.

        Yields:
            The metrics of each epoch, those of an earlier attempt included; epoch 0 is the state at the start.

        Raises:
            TriptychError: a guard stopped the training.
            Interrupted: the autosaver stopped the training, and has saved it.
        """
        yield from self.progress.rows
        if not self.progress.rows:
            yield self.validate()
        meter = Meter(self.steps, self.epoch_steps, self.progress.step)
        while self.progress.epoch <= self.epochs:
            self.train_epoch(meter)
            yield self.validate()
        with fail_together():
            if frozen_hash(self.model) != self.frozen_hash:
                raise TriptychError("a frozen tensor changed during training; the checkpoint is not written")
        self._select_best()

    def train_epoch(self, meter: Meter) -> None:
        """Do the remaining steps of the current epoch."""
        epoch = self.progress.epoch
        self.model.train()
        steps = self._steps_of(epoch)[self.progress.step - (epoch - 1) * self.epoch_steps :]
        passes = [self._passes(samples, rank()) for samples in steps]
        shown = augmented(self.features, self.stage.vision, self.seed, [*self.key, str(epoch)])
        # A thread packs the next batch, and reads its features, while the current one is computed.
        with closing(map_ahead(partial(self.pack, features=shown), chain.from_iterable(passes), 1)) as batches:
            for samples, own in zip(steps, passes, strict=True):
                self.train_step(samples, own, batches)
                if not self.unread:
                    meter.show(epoch, self.progress.step, self.progress.learnt.mean_loss)
                self._save_if_due()
        self._read_steps()

    def _steps_of(self, epoch: int) -> list[list[Sample]]:
        """Give the samples of each step of an epoch."""
        stage, key = self.stage, [*self.key, str(epoch)]
        return epoch_batches(self.training, stage.batch_size, self.seed, key, stage.questions_per_image)

    def _all_passes(self, epoch: int) -> Iterator[list[Sample]]:
        """Give the passes of an epoch, of all processes."""
        for samples in self._steps_of(epoch):
            for process in range(world_size()):
                yield from self._passes(samples, process)

    def _passes(self, samples: Sequence[Sample], process: int) -> list[list[Sample]]:
        """Split a process's samples of a step into forward and backward passes; there may be none."""
        own = partition_for_ranks(samples, self.prefix_tokens, world_size())[process]
        return split_by_image(own, self.prefix_tokens, STEP_TOKENS)

    def train_step(
        self, samples: Sequence[Sample], passes: Sequence[Sequence[Sample]], batches: Iterator[Batch]
    ) -> None:
        """Do one step of the optimiser.

        Args:
            samples: of the whole step, in all processes.
            passes: of these, the samples of each forward and backward pass of this process.
            batches: gives the packed batches of `passes` next.
        """
        # Means are over the answer tokens and images of the whole step, however many passes and processes compute it.
        answer_tokens = sum(len(sample.answer) for sample in samples)
        images = len({sample.image_id for sample in samples})
        step = StepReading([sample.question_id for sample in samples])
        number = self.progress.step + len(self.unread)
        with fail_together(), self.copies.in_use():
            for own in passes:
                batch = next(batches).to(self.device)
                logits, cosine = self._forward(batch)
                loss_sum, exact = score_answers(logits, batch, len(own))
                loss, term = smoothed(loss_sum, logits, batch, self.stage.label_smoothing) / answer_tokens, None
                if cosine is not None:
                    loss = loss + self.stage.regularisation.weight * (cosine / images)
                    term = (cosine / images).detach()
                ids = [sample.question_id for sample in own]
                if self.route.read_every == 1:
                    check_finite("the loss", loss.item(), number, ids)
                own_tokens = sum(len(sample.answer) for sample in own)
                step.passes.append(PassReading(loss_sum.detach(), exact, loss.detach(), term, ids, own_tokens))
                loss.backward()
                self.copies.collect_gradients()
        self._update_weights(step)
        if len(self.unread) >= self.route.read_every:
            self._read_steps()

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the logits (T, V) of a batch's answer tokens and, where there is one, its regularisation term."""
        with mixed_precision(self.precision, self.device):
            if self.head is None:
                return self.model.answer_logits(batch), None
            features, kind = self.model.see(batch.image_features()), self.stage.regularisation.kind
            image = self.model.project(features)
            logits = self.model.answer_logits(batch, image)
            return logits, cosine_term(kind, self.model, self.head, features, image, batch.shown)

    def _update_weights(self, step: StepReading) -> None:
        """Sum the processes' gradients, clip them and let the optimiser step; a bad step does not reach the weights."""
        sum_gradients(self.trained.values())
        with fail_together():
            self.guard.check_gradients()
            step.gradient_norm = nn.utils.clip_grad_norm_(self.trained.values(), self.stage.clip_norm or math.inf)
            if self.route.read_every == 1:
                number = self.progress.step + len(self.unread)
                check_finite("the gradient's norm", step.gradient_norm.item(), number, step.question_ids)
            if self.route.fused_optimiser:
                self.optimiser.found_inf = step.is_bad()
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.guard.check_change(self.optimiser)
            self.lr_scheduler.step()
        self.unread.append(step)

    def _read_steps(self) -> None:
        """Read the numbers of the steps done from the device, and record them.

        Raises:
            TriptychError: one of them is not finite.
        """
        if not self.unread:
            return
        with fail_together():
            numbers = read(self.unread, self.progress.step)
        self.unread = []
        for step in numbers:
            self.progress.learnt += step.score
            self.progress.end_step(step.loss, step.gradient_norm, step.cosine_term if self.head else None)

    def validate(self) -> dict:
        """Validate at the end of an epoch, and save; gives the epoch's metrics.

        Raises:
            TriptychError: the loss is not finite, image tokens have lost their scale, or processes differ.
        """
        check_same_on_all_ranks(self.trained)
        pack_last = partial(self.pack, shapes=self.shapes[-1:])  # the one shape that is compiled for this, too
        with self.copies.in_use():
            held_out = score_samples(self.model, self.validation_batches, pack_last, self.precision, self._save_if_due)
        check_finite("the validation loss", held_out.mean_loss, self.progress.step, [])
        ratio = None
        if not self.stage.blind:
            ratio = norm_ratio(self.model, self.reference_features, self.reference_tokens)
            check_norm_ratio(ratio)
        metrics = self.progress.end_epoch(held_out, ratio)
        print(json.dumps(metrics), flush=True)
        if self.stage.select == "best" and chosen_epoch(self.progress.rows, "best") == metrics["epoch"]:
            of_model = {name: weight for name, weight in self.trained.items() if name not in self.head_parameters}
            self.best = {name: weight.detach().cpu().clone() for name, weight in of_model.items()}
        if self.autosaver:
            self.autosaver.save(self.state_dict())
        return metrics

    def _save_if_due(self) -> None:
        if self.autosaver:
            done = self.progress.step + len(self.unread)
            place = f"epoch {self.progress.epoch}, step {done} of {self.steps}"
            self.autosaver.save_if_due(self.state_dict, place)

    def state_dict(self) -> State:
        """Collect what resuming from here needs: weights, optimiser, random generators, progress, best weights.

        On a CPU, tensors are the training's own, not copies: write them, or stop this training, before they are used.
        """
        self._read_steps()
        best = {f"{BEST}{name}": weight for name, weight in self.best.items()}
        record = {
            "progress": asdict(self.progress),
            "schedule": self.lr_scheduler.state_dict(),
            "reached": sorted(self.guard.reached),
        }
        return State(pack_tensors(self.trained, self.optimiser) | best, record)

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` collected, after `setup`.

        Raises:
            TriptychError: the state is that of a model with other tensors.
        """
        unpack_tensors(state.tensors, self.trained, self.optimiser)
        self.best = {name.removeprefix(BEST): one for name, one in state.tensors.items() if name.startswith(BEST)}
        self.lr_scheduler.load_state_dict(state.record["schedule"])
        for group, rate in zip(self.optimiser.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        progress = dict(state.record["progress"])
        self.progress = Progress(**{**progress, "learnt": Score(**progress["learnt"])})
        self.guard.resume(self.progress.step, state.record["reached"])

    def _select_best(self) -> None:
        with torch.no_grad():
            for name, weight in self.best.items():
                self.trained[name].copy_(weight)


def train(*arguments: Any, **options: Any) -> Iterator[dict]:
    """Set up a `Trainer` with these arguments and run it; yields the metrics of each epoch."""
    trainer = Trainer(*arguments, **options)
    trainer.setup()
    yield from trainer.run()
