"""The contenders of bench_train.py: one measurement of Triptych's training, or of transformers.Trainer's."""

import io
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench_features import queued
from flops import PACKING, breakdown, gemm_rate, label_modules, layers_rate, model_flops, now
from llava import (
    IMAGE_TOKEN,
    SEED,
    SPLIT,
    WIDTH,
    CachedTower,
    image_numbers,
    load_llava,
    load_prompt_tokens,
    normalised,
    peak_memory,
    random_images,
    settings_of,
    slake_samples,
    stored_features,
)
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig
from triptych.config.runtime import Runtime
from triptych.config.settings import Settings
from triptych.config.stages import Stage
from triptych.model import checkpoint
from triptych.model.packing import PADDING, ROW_TOKENS, Batch, pack
from triptych.model.tokens import PromptTokens, Sample
from triptych.train.optimizer import make_optimiser
from triptych.train.sampling import epoch_batches
from triptych.train.trainer import train
from triptych.utils.device import best_device, compute_dtype, mixed_precision

ENGINES = ("Triptych", "Triptych, compiled") if shutil.which("g++") else ("Triptych",)
CONTENDERS = (*ENGINES, "Trainer", "Trainer, cached")
BATCH = 16  # samples of one step
KEY = [SPLIT, "benchmark"]  # names a training, for the order of its samples


@dataclass(frozen=True)
class Task:
    """One measurement, for a process of its own."""

    folder: Path
    language_model: str
    contender: str
    image_tokens: int
    stage: str
    threads: int
    warm_up: int
    steps: int
    seed: int
    check: bool = False  # the first loss, too
    profiled: bool = False


@dataclass
class Found:
    """What was measured: seconds of the timed steps, MB, and so on.

    Attributes:
        seconds: of all timed steps.
        waiting: of these, ready to run but without a core.
        steps: that were timed.
        loss: of the samples of Triptych's first step, before any training.
        memory: largest resident size in MB.
        flops: model FLOPs of the timed steps (Triptych).
        gemm: the machine's matrix products, FLOP/s (Triptych).
        limit: the frozen layers' matrix products of such a step, with nothing in between, FLOP/s (Triptych).
        parts: share of the time of each of PARTS, of PRODUCTS and of PACKING (where profiled).
    """

    seconds: float
    waiting: float
    steps: int
    loss: float
    memory: float
    flops: float = 0.0
    gemm: float = 0.0
    limit: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


def stage_settings(settings: Settings, name: str) -> Stage:
    """One epoch of a stage."""
    return settings.stages[name].model_copy(update={"epochs": 1, "batch_size": BATCH})


class Finished(Exception):
    """All steps have been timed."""


class Clock:
    """Takes the place of a training's autosaver: reads the clock after every step, and ends the training."""

    def __init__(self, task: Task):
        self.first, self.last = task.warm_up, task.warm_up + task.steps
        self.times: list[tuple[float, float]] = []
        self.loss = 0.0
        self.profiler = None
        if task.profiled:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self.profiler = profile(activities=kinds, record_shapes=True)

    def load(self) -> None:
        """No earlier attempt."""

    def save(self, state: Any) -> None:
        """Keep nothing."""

    def save_if_due(self, state_dict: Callable[[], Any], place: str) -> None:
        """Called once before the first step, by its validation of one batch, and then after each."""
        step = len(self.times)
        if step == 1:
            learnt = state_dict().record["progress"]["learnt"]
            self.loss = learnt["loss"] / learnt["tokens"]
        if self.profiler and step == self.first:
            self.profiler.start()
        self.times.append(reading(step in (self.first, self.last)))
        if step == self.last:
            if self.profiler:
                self.profiler.stop()
            raise Finished


def reading(counts: bool) -> tuple[float, float]:
    """Clock and time in the queue; where it counts, after all that a GPU was given to do."""
    return now() if counts else time.perf_counter(), queued()


def found_between(start: tuple[float, float], stop: tuple[float, float], steps: int, loss: float) -> Found:
    """What lies between two readings of clock and queue, and the memory so far."""
    return Found(stop[0] - start[0], stop[1] - start[1], steps, loss, peak_memory())


def measure_triptych(task: Task) -> Found:
    """Train with Triptych."""
    settings = settings_of(task.language_model)
    stage = stage_settings(settings, task.stage)
    device = best_device()
    dtype = compute_dtype("auto", device)
    base = checkpoint.Base(task.folder / "language_model", WIDTH, {})
    lora = settings.lora if "lora" in stage.train else None
    model = checkpoint.build(base, None, settings.connector, lora, SEED, SPLIT, dtype, device)
    prompt = load_prompt_tokens(task.folder)
    samples = slake_samples(prompt)[0]
    features = stored_features(task.folder, task.image_tokens)
    runtime = Runtime(compile="always" if "compiled" in task.contender else "never")
    clock = Clock(task)

    if task.profiled:
        label_modules(model)

    with redirect_stdout(io.StringIO()):
        try:
            list(train(model, samples, samples[:1], features, prompt, stage, "auto", task.seed, KEY, clock, runtime))
        except Finished:
            found = found_between(clock.times[clock.first], clock.times[clock.last], task.steps, clock.loss)
    batches = [packed_tokens(chosen, prompt, task.image_tokens) for chosen in steps_of(samples, task.seed)]
    timed = batches[clock.first : clock.last]
    config = AutoConfig.from_pretrained(task.folder / "language_model", trust_remote_code=False)
    found.flops = sum(model_flops(batch, config, lora) for batch in timed)
    if task.profiled:
        found.parts = breakdown(clock.profiler, found.seconds, config.vocab_size)
        start = time.perf_counter()
        for chosen in steps_of(samples, task.seed)[clock.first : clock.last]:
            pack(chosen, features, prompt, task.image_tokens, sys.maxsize)
        found.parts[PACKING] = (time.perf_counter() - start) / found.seconds
    else:
        found.gemm = gemm_rate(dtype, device)
        tokens = sum(int((batch.blocks != PADDING).sum()) for batch in timed) // len(timed)
        found.limit = layers_rate(tokens, config, dtype, device)
    return found


def steps_of(samples: Sequence[Sample], seed: int) -> list[list[Sample]]:
    """The samples of each of Triptych's steps, in one epoch."""
    return epoch_batches(samples, BATCH, seed, [*KEY, "1"])


def packed_tokens(samples: Sequence[Sample], prompt: PromptTokens, image_tokens: int) -> Batch:
    """A step as Triptych packs it, without the features."""
    # One row of all blocks, as training packs them for its blockwise attention on a CPU; several rows for a GPU.
    row = sys.maxsize if best_device().type == "cpu" else ROW_TOKENS
    return pack(samples, lambda image_ids: torch.empty(len(image_ids), 0, 0), prompt, image_tokens, row)


def padded_rows(samples: Sequence[Sample], prompt: PromptTokens, image_tokens: int) -> dict[str, torch.Tensor]:
    """The usual collator's token ids, attention mask and labels: one question a row, padded on the right."""
    before = [*prompt.before_image, *[IMAGE_TOKEN] * image_tokens]
    rows = [torch.tensor([*before, *sample.text]) for sample in samples]
    labels = [row.clone() for row in rows]
    for row, sample in zip(labels, samples, strict=True):
        row[: -len(sample.answer)] = -100
    padded = nn.utils.rnn.pad_sequence
    return {
        "input_ids": padded(rows, batch_first=True, padding_value=prompt.end),
        "attention_mask": padded([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": padded(labels, batch_first=True, padding_value=-100),
    }


def measure_trainer(task: Task) -> Found:
    """Train with transformers.Trainer."""
    from transformers import Trainer, TrainerCallback

    settings = settings_of(task.language_model)
    stage = stage_settings(settings, task.stage)
    device = best_device()
    prompt = load_prompt_tokens(task.folder)
    samples = slake_samples(prompt)[0]
    model = trainer_model(task, settings, stage)
    collate = collator(task, prompt)
    loss = 0.0
    if task.check:
        same = {name: tensor.to(device) for name, tensor in collate(steps_of(samples, task.seed)[0]).items()}
        with torch.no_grad(), mixed_precision("auto", device):
            loss = float(model(**same).loss)
    steps = task.warm_up + task.steps
    trained = {
        name if ".lora_" in name else f"connector.{name}": parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    times: list[tuple[float, float]] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(reading(len(times) + 1 in (task.warm_up, steps)))

    trainer = Trainer(
        model,
        trainer_arguments(task, steps),
        train_dataset=samples,
        data_collator=collate,
        optimizers=make_optimiser(trained, stage, steps),
        callbacks=[Watch()],
    )
    with redirect_stdout(io.StringIO()):
        trainer.train()
    return found_between(times[task.warm_up - 1], times[-1], task.steps, loss)


def trainer_model(task: Task, settings: Settings, stage: Stage) -> nn.Module:
    """LLaVA as Trainer trains it: the projector, and adapters where the stage trains them."""
    from peft import LoraConfig, get_peft_model

    model = load_llava(task.folder, task.image_tokens)
    model.config.use_cache = False
    projector = model.model.multi_modal_projector
    if task.contender != "Trainer":
        model.model.vision_tower = CachedTower()
    if "lora" in stage.train:
        lora = settings.lora
        layers = rf".*language_model.*\.({'|'.join(lora.target_modules)})"
        options = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
        model = get_peft_model(model, LoraConfig(**options, target_modules=layers, task_type="CAUSAL_LM"))
    projector.requires_grad_(True)
    return model


def collator(task: Task, prompt: PromptTokens) -> Callable[[list[Sample]], dict[str, torch.Tensor]]:
    """The function that makes a batch of samples: with pixels or, for the cached contender, with stored features."""
    cached = task.contender != "Trainer"
    features = stored_features(task.folder, task.image_tokens) if cached else None
    pixels = None if cached else random_images(task.image_tokens)

    def collate(rows: list[Sample]) -> dict[str, torch.Tensor]:
        image_ids = [sample.image_id for sample in rows]
        images = features(image_ids) if cached else normalised(pixels[image_numbers(image_ids)])
        return {**padded_rows(rows, prompt, task.image_tokens), "pixel_values": images}

    return collate


def trainer_arguments(task: Task, steps: int) -> Any:
    """The TrainingArguments of `steps` steps: nothing is saved, logged or reported."""
    from transformers import TrainingArguments

    device = best_device()
    return TrainingArguments(
        output_dir=str(task.folder / "trainer"),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        bf16=compute_dtype("auto", device) == torch.bfloat16,
        use_cpu=device.type == "cpu",
        seed=task.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def measure(task: Task) -> Found:
    """Do one measurement; for a process of its own."""
    torch.set_num_threads(task.threads)
    return measure_triptych(task) if task.contender in ENGINES else measure_trainer(task)
