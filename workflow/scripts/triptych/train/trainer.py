"""The training loop of one stage: teacher forcing, mean cross-entropy over the answer tokens of a step."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import chain

import torch
from torch import nn

from triptych.config.stages import Stage, Training
from triptych.errors import TriptychError
from triptych.model.attention import row_tokens
from triptych.model.packing import Batch, pack, split_by_image
from triptych.model.tokens import PromptTokens, Sample
from triptych.model.vlm import VisionLanguageModel
from triptych.train.activation_checkpointing import choose_checkpointing, largest_pass
from triptych.train.autosave import Keeper
from triptych.train.compilation import choose_compilation, planned_work
from triptych.train.distributed import rank, sum_gradients, together, total, world_size
from triptych.train.guards import GradientGuard, check_finite, check_norm_ratio, check_same_everywhere, frozen_hash
from triptych.train.optimizer import make_optimiser
from triptych.train.parameters import as_table, describe, set_trainable
from triptych.train.progress import Meter, Progress
from triptych.train.regularisation import build_head, cosine_term
from triptych.train.sampling import epoch_batches, shares
from triptych.train.state import State, pack_tensors, unpack_tensors
from triptych.train.validation import Score, chosen_epoch, norm_ratio, validate
from triptych.utils.device import compute_dtype, mixed_precision
from triptych.utils.prefetch import map_ahead
from triptych.utils.seeds import derive_seed

CLIP_NORM = 1.0


STEP_TOKENS = 8192  # of one forward and backward pass; a larger step is added up from several


BEST = "best/"  # in a saved state: weights of the best epoch so far


def train(
    model: VisionLanguageModel,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    features: Callable[[Sequence[str]], torch.Tensor],
    prompt: PromptTokens,
    stage: Stage,
    settings: Training,
    seed: int,
    key: Sequence[str],
    keeper: Keeper | None = None,
) -> Iterator[dict]:
    """Train one stage in place; yields the metrics of each epoch, epoch 0 being the state at the start.

    On the same kind of processor, a training that was stopped and taken up again ends with the same bits as one that
    was not. Several processes (`train/parallel.py`) share every step; dropout apart, the result is that of one process
    but for rounding.

    Args:
        model: on its device; what trains in fp32, the rest frozen.
        training: samples to learn from.
        validation: samples to measure on.
        features: image ids -> vision features (R, N, D).
        prompt: the fixed text.
        stage: what trains and how.
        settings: precision, checkpointing and compilation.
        seed: the run's seed.
        key: names that, with the seed, fix the order of samples and the dropout.
        keeper: saves the training as it goes, and has what an earlier attempt saved; None keeps nothing.

    Raises:
        TriptychError: a guard stopped the training.
        Paused: the keeper stopped it, and has saved it.
    """
    device = next(model.parameters()).device
    model.blind = stage.blind
    trained = set_trainable(model, stage.train)
    some = training[:8]
    some_features = None if stage.blind else features(list({sample.image_id: None for sample in some}))
    some_tokens = torch.tensor([token for sample in some for token in sample.text])
    image_tokens = 0 if stage.blind else model.image_tokens(some_features)
    prefix = len(prompt.before_image) + image_tokens
    rows = row_tokens(model.decoder)
    to_batch = partial(pack, features=features, prompt=prompt, image_tokens=image_tokens, row_tokens=rows)

    term = stage.regularisation
    head = build_head(term, model, some_features, derive_seed(seed, "regularisation", *key))
    added = {f"regularisation.{name}": weight for name, weight in head.named_parameters()} if head else {}
    trained |= added
    epochs = stage.epochs or 0  # none where nothing trains
    epoch_steps = -(-len(training) // stage.batch_size)
    steps = epochs * epoch_steps
    shown = f"{image_tokens} image tokens an image" if image_tokens else "no images"
    print(as_table(describe([*model.named_parameters(), *added.items()])))
    print(f"{steps} steps of {stage.batch_size} samples in {epochs} epochs; {shown}", flush=True)
    if steps:
        width = compute_dtype(settings.precision, device).itemsize
        size = largest_pass(training, prefix, stage.batch_size, STEP_TOKENS, model)
        print(choose_checkpointing(settings.gradient_checkpointing, model, size, width), flush=True)
        if choose_compilation(settings.compile, model, planned_work(model, training, prefix, epochs)):
            print("the language model's layers are compiled", flush=True)
    optimiser, schedule = make_optimiser(trained, stage, steps)
    frozen = frozen_hash(model)
    guard = GradientGuard(trained)
    torch.manual_seed(derive_seed(seed, "dropout", *key, *([f"process {rank()}"] if rank() else [])))
    progress = Progress()
    best: dict[str, torch.Tensor] = {}
    if keeper and (state := keeper.load()):
        record = dict(state.record)
        unpack_tensors(state.tensors, trained, optimiser)
        best = {name.removeprefix(BEST): kept for name, kept in state.tensors.items() if name.startswith(BEST)}
        schedule.load_state_dict(record["schedule"])
        for group, rate in zip(optimiser.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        guard.go_on(record["progress"]["step"], record["reached"])
        progress = Progress(**{**record["progress"], "learnt": Score(**record["progress"]["learnt"])})
        print(f"resuming at epoch {min(progress.epoch, epochs)}, step {progress.step} of {steps}", flush=True)

    def capture() -> State:
        record = {
            "progress": asdict(progress),
            "schedule": schedule.state_dict(),
            "reached": sorted(guard.reached),
        }
        kept = {f"{BEST}{name}": weight for name, weight in best.items()}
        return State(pack_tensors(trained, optimiser) | kept, record)

    def may_stop() -> None:
        if keeper:
            keeper.ask(capture, f"epoch {progress.epoch}, step {progress.step} of {steps}")

    def measure() -> dict:
        nonlocal best
        check_same_everywhere(trained)
        held_out = validate(model, validation, to_batch, settings.precision, may_stop)
        check_finite("the validation loss", held_out.mean_loss, progress.step, [])
        ratio = None if stage.blind else norm_ratio(model, some_features, some_tokens)
        if ratio is not None:
            check_norm_ratio(ratio)
        metrics = progress.end_epoch(held_out, ratio)
        print(json.dumps(metrics), flush=True)
        if stage.select == "best" and chosen_epoch(progress.rows, "best") == metrics["epoch"]:
            best = {name: weight.detach().cpu().clone() for name, weight in trained.items() if name not in added}
        if keeper:
            keeper.save(capture())
        return metrics

    def own_pieces(chosen: Sequence[Sample]) -> list[list[Sample]]:
        """What this process computes of a step, in passes; maybe nothing."""
        return split_by_image(shares(chosen, prefix, world_size())[rank()], prefix, STEP_TOKENS)

    def learn(chosen: Sequence[Sample], pieces: Sequence[Sequence[Sample]], batches: Iterator[Batch]) -> None:
        """One step of the optimiser; `batches` gives those of the pieces next."""
        # Means are over the answer tokens and images of the whole step, in however many pieces it is computed.
        answer_tokens = sum(len(sample.answer) for sample in chosen)
        images = len({sample.image_id for sample in chosen})
        score = Score()
        step_loss = step_term = 0.0
        with together():
            for piece in pieces:
                batch = next(batches).to(device)
                with mixed_precision(settings.precision, device):
                    image = model.project(batch.features) if head else None
                    logits = model.answer_logits(batch, image)
                    cosine = cosine_term(term.kind, model, head, batch.features, image) / images if head else None
                loss = score.add(logits, batch.targets, batch.target_samples, len(piece)) / answer_tokens
                if cosine is not None:
                    loss = loss + term.weight * cosine
                    step_term += cosine.item()
                step_loss += loss.item()
                check_finite("the loss", step_loss, progress.step, [sample.question_id for sample in piece])
                loss.backward()
        progress.learnt += score.over_processes()
        step_loss, step_term = total([step_loss, step_term])
        sum_gradients(trained.values())
        with together():
            guard.check_gradients()
            norm = float(nn.utils.clip_grad_norm_(trained.values(), CLIP_NORM))
            check_finite("the gradient's norm", norm, progress.step, [sample.question_id for sample in chosen])
            optimiser.step()
            optimiser.zero_grad()
            guard.check_change()
            schedule.step()
        progress.end_step(step_loss, norm, step_term if head else None)

    yield from progress.rows
    if not progress.rows:
        yield measure()
    meter = Meter(steps, epoch_steps, progress.step)
    while progress.epoch <= epochs:
        epoch = progress.epoch
        model.train()
        todo = epoch_batches(training, stage.batch_size, seed, [*key, str(epoch)])
        todo = todo[progress.step - (epoch - 1) * epoch_steps :]
        pieces = [own_pieces(chosen) for chosen in todo]
        # A thread packs the next batch, and reads its features, while this one is computed.
        with closing(map_ahead(to_batch, chain.from_iterable(pieces), 1)) as batches:
            for chosen, own in zip(todo, pieces, strict=True):
                learn(chosen, own, batches)
                meter.show(epoch, progress.step, progress.learnt.mean_loss)
                may_stop()
        yield measure()
    with together():
        if frozen_hash(model) != frozen:
            raise TriptychError("a frozen tensor changed during training; the checkpoint is not written")
    with torch.no_grad():
        for name, weight in best.items():
            trained[name].copy_(weight)
