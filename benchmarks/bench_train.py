"""How fast and how lean is training? Against `transformers.Trainer` with `LlavaForConditionalGeneration`, side by side.

    make bench-train

The same language model, connector, adapters, questions, samples a step, optimiser and precision for all: on a CPU
SmolLM2-135M with images of 50 and 196 tokens, on a GPU a model of TinyLlama-1.1B's shape with 576.

- Triptych: `triptych.train.trainer.train` as the workflow calls it, with `training.compile: never`, and with `always`
  (compiled) where there is a C++ compiler; the time that compiling takes once is left out;
- Trainer: one question a row, padded to the longest, the vision tower in the loop (the way of LLaVA and TinyLLaVA);
- Trainer, cached: the same, with vision features that were computed before.

Models, questions and images are those of `llava.py`. Neither LLaVA's nor TinyLLaVA's gradient checkpointing is on,
which would slow them down.

Each measurement is a process of its own; contenders take turns; medians over rounds count, and what has no bar to meet
is measured in the first round only. Memory is the process's largest resident size, or that of its tensors on a GPU.
"Waiting" is the share of time in which the process's main thread was ready to run and had no core (Linux counts it):
where it is more than a few per cent, the machine was not quiet. Samples per second are of the whole time; ratios and
utilisation leave that time out, which holds for one thread. The run takes about a quarter of an hour on one core.

Model FLOPs are what the mathematics of a step needs, on real tokens, padding left out:

- layers' matrix products, forward and for the gradient of the activations: 2 x 2 x weights x tokens; frozen weights
  need no gradient. The output head: the same, on answer tokens only;
- attention: 4 x heads x head size for each pair of tokens that see each other, and twice that backward;
- what trains: forward, and once each backward for weights and activations; vision features need no gradient.

Utilisation is their rate over the highest bf16 matrix-product rate that torch reaches here with the same threads, the
model's own shapes among those tried. Its limit is the rate of the frozen layers' matrix products of one step, forward
and backward, with nothing in between.
"""

import argparse
import io
import itertools
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench_features import queued
from flops import PACKING, PARTS, PRODUCTS, breakdown, gemm_rate, label_modules, layers_rate, model_flops, now
from llava import (
    IMAGE_TOKEN,
    LANGUAGE_MODELS,
    SEED,
    SPLIT,
    WIDTH,
    CachedTower,
    apart,
    image_numbers,
    image_tokens_of,
    load_llava,
    load_prompt_tokens,
    normalised,
    peak_memory,
    pictures,
    prepare,
    settings_of,
    slake_samples,
    stored_features,
)
from printed import cell, print_table
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig
from triptych.config.settings import Settings
from triptych.config.stages import Stage
from triptych.model import checkpoint
from triptych.model.packing import PADDING, ROW_TOKENS, Batch, pack
from triptych.model.tokens import PromptTokens, Sample
from triptych.train.optimizer import make_optimiser
from triptych.train.sampling import epoch_batches
from triptych.train.trainer import train
from triptych.utils.device import best_device, compute_dtype, mixed_precision

STAGES = ("2", "3")
ENGINES = ("Triptych", "Triptych, compiled") if shutil.which("g++") else ("Triptych",)
CONTENDERS = (*ENGINES, "Trainer", "Trainer, cached")
BARS = {(50, "Trainer"): 6, (50, "Trainer, cached"): 3, (196, "Trainer"): 8}  # how many times faster Triptych must be
UTILISATION_BAR = 0.5
BATCH = 16  # samples of one step
KEY = [SPLIT, "benchmark"]  # names a training, for the order of its samples
LOSS_TOLERANCE = 0.02  # of the loss, between contenders: bf16 has three digits


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
    """Stands where a training's autosaver does: reads the clock after every step, and ends the training."""

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

    def save_if_due(self, capture: Callable[[], Any], place: str) -> None:
        """Called once before the first step, by its validation of one batch, and then after each."""
        step = len(self.times)
        if step == 1:
            learnt = capture().record["progress"]["learnt"]
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
    training = settings.training.model_copy(update={"compile": "always" if "compiled" in task.contender else "never"})
    clock = Clock(task)

    if task.profiled:
        label_modules(model)

    with redirect_stdout(io.StringIO()):
        try:
            list(train(model, samples, samples[:1], features, prompt, stage, training, task.seed, KEY, clock))
        except Finished:
            found = found_between(clock.times[clock.first], clock.times[clock.last], task.steps, clock.loss)
    batches = [packed_tokens(chosen, prompt, task.image_tokens) for chosen in steps_of(samples, task.seed)]
    timed = batches[clock.first : clock.last]
    config = AutoConfig.from_pretrained(task.folder / "language_model")
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
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    settings = settings_of(task.language_model)
    stage = stage_settings(settings, task.stage)
    device = best_device()
    dtype = compute_dtype("auto", device)
    prompt = load_prompt_tokens(task.folder)
    samples = slake_samples(prompt)[0]
    model = load_llava(task.folder, task.image_tokens)
    model.config.use_cache = False
    projector = model.model.multi_modal_projector
    if task.contender == "Trainer":
        pixels = pictures(task.image_tokens)
    else:
        model.model.vision_tower = CachedTower()
        features = stored_features(task.folder, task.image_tokens)
    if "lora" in stage.train:
        lora = settings.lora
        layers = rf".*language_model.*\.({'|'.join(lora.target_modules)})"
        options = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
        model = get_peft_model(model, LoraConfig(**options, target_modules=layers, task_type="CAUSAL_LM"))
    projector.requires_grad_(True)

    def collate(rows: list[Sample]) -> dict[str, torch.Tensor]:
        image_ids = [sample.image_id for sample in rows]
        cached = task.contender != "Trainer"
        images = features(image_ids) if cached else normalised(pixels[image_numbers(image_ids)])
        return {**padded_rows(rows, prompt, task.image_tokens), "pixel_values": images}

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
        TrainingArguments(
            output_dir=str(task.folder / "trainer"),
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            bf16=dtype == torch.bfloat16,
            use_cpu=device.type == "cpu",
            seed=task.seed,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=samples,
        data_collator=collate,
        optimizers=make_optimiser(trained, stage, steps),
        callbacks=[Watch()],
    )
    with redirect_stdout(io.StringIO()):
        trainer.train()
    return found_between(times[task.warm_up - 1], times[-1], task.steps, loss)


def measure(task: Task) -> Found:
    """Do one measurement; for a process of its own."""
    torch.set_num_threads(task.threads)
    return measure_triptych(task) if task.contender in ENGINES else measure_trainer(task)


def token_counts(samples: Sequence[Sample], prompt: PromptTokens, image_tokens: int) -> dict[str, int]:
    """Tokens of one epoch: real ones and all, packed and one question a row."""
    counts = Counter()
    for chosen in steps_of(samples, SEED):
        batch = packed_tokens(chosen, prompt, image_tokens)
        counts["packed"] += int((batch.blocks != PADDING).sum())
        counts["packed, all"] += batch.blocks.numel()
    shuffled = random.Random(SEED).sample(list(samples), len(samples))
    prefix = len(prompt.before_image) + image_tokens
    for start in range(0, len(shuffled), BATCH):
        lengths = [prefix + len(sample.text) for sample in shuffled[start : start + BATCH]]
        counts["rows"] += sum(lengths)
        counts["rows, all"] += len(lengths) * max(lengths)
    return counts


def rate(found: Found) -> float:
    """Samples per second, without the time in the queue."""
    return BATCH * found.steps / (found.seconds - found.waiting)


def print_results(results: dict[tuple[int, str], dict[str, list[Found]]], bars: Mapping[tuple[int, str], int]) -> None:
    """Speed and memory, and how Triptych compares."""
    head = ["image tokens", "stage", "contender", "samples/s (median, range)", "waiting", "peak MB", "bar"]
    rows = [[*head, *itertools.chain(*([f"{name} is faster by", "its memory"] for name in ENGINES))]]
    for (image_tokens, stage), by_contender in results.items():
        for name, founds in by_contender.items():
            speed = cell([BATCH * found.steps / found.seconds for found in founds], 2)
            waiting = statistics.median(found.waiting / found.seconds for found in founds)
            memory = statistics.median(found.memory for found in founds)
            bar = bars.get((image_tokens, name))
            row = [image_tokens, stage, name, speed, f"{waiting:.0%}", f"{memory:.0f}", bar or ""]
            for engine in ENGINES if name not in ENGINES else []:
                pairs = list(zip(by_contender[engine], founds, strict=False))  # what has no bar was measured once
                ratios = [rate(mine) / rate(other) for mine, other in pairs]
                verdict = f": {'met' if bar <= statistics.median(ratios) else 'missed'}" if bar else ""
                share = statistics.median(found.memory for found in by_contender[engine]) / memory
                row += [cell(ratios, 2) + verdict, f"{share:.2f} of it"]
            rows.append(row + [""] * (len(rows[0]) - len(row)))
    print_table(*rows)


def print_losses(results: dict[tuple[int, str], dict[str, list[Found]]]) -> None:
    """The loss of the same samples, before any training, in all contenders; ends where they differ."""
    rows = [["image tokens", "stage", *(f"first loss, {name}" for name in CONTENDERS), "largest difference"]]
    worst = 0.0
    for (image_tokens, stage), by_contender in results.items():
        losses = [by_contender[name][0].loss for name in CONTENDERS]
        difference = max(losses) / min(losses) - 1
        worst = max(worst, difference)
        rows.append([image_tokens, stage, *(f"{loss:.4f}" for loss in losses), f"{difference:.2%}"])
    print_table(*rows)
    if worst > LOSS_TOLERANCE:
        sys.exit("the contenders do not compute the same; the comparison is void")


def print_tokens(samples: Sequence[Sample], prompt: PromptTokens, cases: Sequence[int]) -> None:
    """What packing saves, over a whole epoch."""
    head = ["padding, Triptych", "padding, one question a row", "tokens a question, Triptych", "one question a row"]
    rows = [["image tokens", *head, "saved by sharing images", "saved with the padding"]]
    for image_tokens in cases:
        counts = token_counts(samples, prompt, image_tokens)
        waste = [f"{1 - counts[name] / counts[f'{name}, all']:.1%}" for name in ("packed", "rows")]
        mean = [f"{counts[name] / len(samples):.1f}" for name in ("packed", "rows")]
        saved = [f"{1 - counts[f'packed{what}'] / counts[f'rows{what}']:.1%}" for what in ("", ", all")]
        rows.append([image_tokens, *waste, *mean, *saved])
    print_table(*rows)


def print_utilisation(results: dict[tuple[int, str], dict[str, list[Found]]]) -> None:
    """Model FLOPs over what the machine's matrix products reach."""
    head = ["image tokens", "stage", "contender", "GFLOP a sample", "GFLOP/s", "matrix products, GFLOP/s"]
    rows = [[*head, "utilisation", f"bar: {UTILISATION_BAR:.0%}", "limit: layers' products alone"]]
    for ((image_tokens, stage), by_contender), name in itertools.product(results.items(), ENGINES):
        own = by_contender[name]
        need = statistics.median(found.flops / found.steps / BATCH for found in own) / 1e9
        speeds = [found.flops / (found.seconds - found.waiting) / 1e9 for found in own]
        gemm = [found.gemm / 1e9 for found in own]
        shares = [100 * speed / peak for speed, peak in zip(speeds, gemm, strict=True)]
        limit = statistics.median(found.limit / found.gemm for found in own)
        verdict = "met" if statistics.median(shares) >= 100 * UTILISATION_BAR else "missed"
        row = [image_tokens, stage, name, f"{need:.2f}", cell(speeds, 0), cell(gemm, 0)]
        rows.append([*row, f"{cell(shares, 1)} %", verdict, f"{limit:.0%}"])
    print_table(*rows)


def main() -> None:
    """Print the tables."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--language-model", choices=LANGUAGE_MODELS, default="tinyllama" if on_gpu else "smollm2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="timed steps of Triptych; on a CPU Trainer does fewer")
    parser.add_argument("--threads", type=int, default=8 if on_gpu else 1)
    parser.add_argument("--quick", action="store_true", help="one round of a few steps: does everything work?")
    arguments = parser.parse_args()
    rounds, steps = (1, 4) if arguments.quick else (arguments.rounds, arguments.steps or (40 if on_gpu else 8))
    language_model, threads = arguments.language_model, arguments.threads
    bars = {} if on_gpu else BARS
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prompt, samples, _ = prepare(folder, threads, language_model)
        dtype = str(compute_dtype("auto", best_device())).removeprefix("torch.")
        where = torch.cuda.get_device_name() if on_gpu else f"{threads} thread{'s' * (threads > 1)}"
        print(f"{language_model}, {dtype}, {where}, {BATCH} samples a step; {rounds} rounds", flush=True)
        cases = itertools.product(image_tokens_of(language_model), STAGES)
        results: dict = {case: {name: [] for name in CONTENDERS} for case in cases}
        loads = []
        for turn in range(rounds):
            for (image_tokens, stage), by_contender in results.items():
                for place in range(len(CONTENDERS)):
                    name = CONTENDERS[(turn + place) % len(CONTENDERS)]
                    if turn and not on_gpu and name not in ENGINES and (image_tokens, name) not in bars:
                        continue
                    timed = (25 if on_gpu else 4, steps)  # a GPU is slow at its first steps of any shape
                    if not on_gpu and name not in ENGINES:  # Trainer's steps take long and are much alike
                        timed = (1, max(1, 50 * steps // image_tokens // 4))
                    what = (folder, language_model, name, image_tokens, stage, threads)
                    by_contender[name].append(found := apart(measure, Task(*what, *timed, SEED + turn, turn == 0)))
                    loads.append(os.getloadavg()[0])
                    said = f"round {turn + 1}, {image_tokens} image tokens, stage {stage}, {name}"
                    print(f"{said}: {rate(found):.2f} samples/s, {found.memory:.0f} MB", file=sys.stderr, flush=True)
        print_results(results, bars)
        print_losses(results)
        print_tokens(samples, prompt, image_tokens_of(language_model))
        print_utilisation(results)
        profiled = [
            Task(folder, language_model, "Triptych", *case, threads, 2, 4, SEED, profiled=True) for case in results
        ]
        parts = [apart(measure, task).parts for task in profiled]
    print_table(
        [
            "share of Triptych's time (profiled, not compiled)",
            *(f"{count} tokens, stage {stage}" for count, stage in results),
        ],
        *([part, *(f"{shares[part]:.0%}" for shares in parts)] for part in [*PARTS, PRODUCTS, PACKING]),
    )
    print(f"\nload of the machine {cell(loads, 1)}; {(time.monotonic() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
