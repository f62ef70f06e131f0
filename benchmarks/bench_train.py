"""How fast and how lean is training? Against `transformers.Trainer` with `LlavaForConditionalGeneration`, side by side.

    make bench-train

The same language model, connector, adapters, questions, samples a step, optimiser and precision for all:

- Triptych: `triptych.train.loop.train` as the workflow calls it, with `training.compile: never`, and with `always`
  (compiled) where there is a C++ compiler; the time that compiling takes once is left out;
- Trainer: one question a row, padded to the longest, the vision tower in the loop (the way of LLaVA and TinyLLaVA);
- Trainer, cached: the same, with vision features that were computed before.

The vision towers have the shapes of CLIP-ViT-B/32 (50 tokens) and SigLIP-B/16-224 (196 tokens) and random weights, on
which speed does not depend. Trainer gets its pictures as 224 x 224 bytes: no decoding, no resizing. Neither LLaVA's
nor TinyLLaVA's gradient checkpointing is on, which would slow them down. Questions are those of SLAKE's training part
where TRIPTYCH_SLAKE names a copy, otherwise random words in SLAKE's numbers and lengths.

Each measurement is a process of its own; contenders take turns; medians over rounds count, and what has no bar to meet
is measured in the first round only. Memory is the process's largest resident size. "Waiting" is the share of time in
which the process's main thread was ready to run and had no core (Linux counts it): where it is more than a few per
cent, the machine was not quiet. Samples per second are of the whole time; ratios and utilisation leave that time out,
which holds for one thread. The run takes about a quarter of an hour on one core.

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
import json
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from bench_features import queued
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoConfig
from triptych import checkpoint
from triptych.hardware import best_device, compute_dtype, mixed_precision
from triptych.model.assets import prepare_model
from triptych.model.batch import PADDING, Batch, PromptTokens, Sample, pack, prompt_tokens, tokenise
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.vlm import build_connector
from triptych.settings import Stage, load_settings
from triptych.sources.packages import default_cache
from triptych.storage import derive_seed
from triptych.train.loop import train
from triptych.train.order import epoch_batches
from triptych.train.parts import make_optimiser

CONFIG = Path(__file__).parent.parent / "config/slake-cpu.yaml"
IMAGE_TOKENS = (50, 196)
STAGES = ("2", "3")
ENGINES = ("Triptych", "Triptych, compiled") if shutil.which("g++") else ("Triptych",)
CONTENDERS = (*ENGINES, "Trainer", "Trainer, cached")
BARS = {(50, "Trainer"): 6, (50, "Trainer, cached"): 3, (196, "Trainer"): 8}  # how many times faster Triptych must be
UTILISATION_BAR = 0.5
BATCH = 16  # samples of one step
PICTURES = 32  # different ones; SLAKE's images show them in turn
SIDE = 224
WIDTH = 768  # of vision features
IMAGE_TOKEN = 3  # <repo_name>, which stands in no question: where Trainer's rows hold the image
SEED = 0
SPLIT = "shared"
KEY = [SPLIT, "benchmark"]  # names a training, for the order of its samples
LOSS_TOLERANCE = 0.02  # of the loss, between contenders: bf16 has three digits
# SLAKE's English training part (4,919 questions, 450 images): value -> how often; lengths in tokens of SmolLM2.
QUESTIONS_OF_IMAGE = {4: 3, 5: 8, 6: 12, 7: 30, 8: 60, 9: 99, 10: 43, 11: 22, 12: 25, 13: 19, 14: 21, 15: 74, 16: 13}
QUESTIONS_OF_IMAGE |= {17: 4, 18: 9, 19: 7, 20: 1}
QUESTION_LENGTHS = {5: 263, 6: 881, 7: 371, 8: 613, 9: 919, 10: 188, 11: 659, 12: 204, 13: 215, 14: 343, 15: 98, 16: 28}
QUESTION_LENGTHS |= {17: 50, 18: 38, 19: 35, 20: 1, 21: 8, 22: 5}
ANSWER_LENGTHS = {1: 2753, 2: 1161, 3: 508, 4: 190, 5: 117, 6: 50, 7: 28, 8: 25, 9: 11, 10: 11, 11: 15, 12: 13, 13: 14}
ANSWER_LENGTHS |= {14: 19, 15: 3, 16: 1}
PARTS = (
    "frozen linear layers",
    "attention: rotary positions, scores, softmax, values",
    "LoRA",
    "connector",
    "norms",
    "gate of the MLP",
    "output head and loss",
    "embeddings, mask, residuals, other",
    "optimiser, clipping",
    "Python between operations",
)
LAYERS, ATTENTION, LORA, CONNECTOR, NORMS, GATE, HEAD, OTHER, OPTIMISER, PYTHON = PARTS
PACKING = "beside it, in a thread: packing and reading of features"
PRODUCTS = "all matrix products, in whichever part"


@dataclass(frozen=True)
class Task:
    """One measurement, for a process of its own."""

    folder: Path
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


def peak_memory() -> float:
    """Largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def stage_settings(name: str) -> Stage:
    """A stage of config/slake-cpu.yaml, one epoch of it."""
    stage = load_settings(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))).stages[name]
    return stage.model_copy(update={"epochs": 1, "batch_size": BATCH})


def slake_samples(prompt: PromptTokens) -> tuple[list[Sample], str]:
    """The questions, and in words where they come from."""
    if folder := os.environ.get("TRIPTYCH_SLAKE"):
        records = json.loads(Path(folder, "train.json").read_text(encoding="utf-8"))
        rows = [
            {"question_id": str(row["qid"]), "image_id": str(row["img_id"]), **row}
            for row in records
            if row["q_lang"] == "en"
        ]
        return tokenise(rows, prompt), "SLAKE's own (English training part)"
    draw = random.Random(SEED)

    def shuffled(counts: dict[int, int]) -> list[int]:
        values = list(Counter(counts).elements())
        return draw.sample(values, len(values))

    def words(number: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(1000, 40_000), k=number))

    images = [str(image) for image, number in enumerate(shuffled(QUESTIONS_OF_IMAGE)) for _ in range(number)]
    lengths = zip(images, shuffled(QUESTION_LENGTHS), shuffled(ANSWER_LENGTHS), strict=True)
    fixed = prompt.encode_question("")
    samples = [
        Sample(str(row), image, (*words(question), *fixed), (*words(answer), prompt.end))
        for row, (image, question, answer) in enumerate(lengths)
    ]
    return samples, "random words in SLAKE's numbers and lengths (TRIPTYCH_SLAKE is not set)"


def load_prompt_tokens(folder: Path) -> PromptTokens:
    """The fixed text of the language model in `folder`."""
    return prompt_tokens(load_tokenizer(folder / "language_model"), load_prompt(folder / "language_model"))


def pictures() -> torch.Tensor:
    """Random pictures (PICTURES, 3, SIDE, SIDE), bytes."""
    size = (PICTURES, 3, SIDE, SIDE)
    return torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes -> floats from -1 to 1."""
    return pixels.float() / 127.5 - 1


def picture_numbers(image_ids: Sequence[str]) -> list[int]:
    """Which picture each image shows."""
    return [int(image_id) % PICTURES for image_id in image_ids]


def write_llava(folder: Path, image_tokens: int) -> None:
    """Write the LLaVA model that Trainer trains, and the features of all pictures as its tower computes them."""
    from transformers import AutoModelForCausalLM, CLIPVisionConfig, LlavaConfig, SiglipVisionConfig
    from transformers import LlavaForConditionalGeneration as Llava

    torch.manual_seed(SEED)
    dtype = compute_dtype("auto", best_device())
    text = AutoModelForCausalLM.from_pretrained(folder / "language_model", dtype=dtype)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 12, "num_attention_heads": 12}
    kind, patch_side = (CLIPVisionConfig, 32) if image_tokens == 50 else (SiglipVisionConfig, 16)
    config = LlavaConfig(
        vision_config=kind(**sizes, image_size=SIDE, patch_size=patch_side),
        text_config=text.config,
        image_token_id=IMAGE_TOKEN,
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
        tie_word_embeddings=True,
    )
    model = Llava(config).to(dtype).eval()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.save_pretrained(folder / f"llava-{image_tokens}")
    with torch.inference_mode(), mixed_precision("auto", best_device()):
        states = model.model.vision_tower(normalised(pictures()), output_hidden_states=True).hidden_states
    tokens = states[config.vision_feature_layer].to(dtype).contiguous()
    save_file({"tokens": tokens}, folder / f"features-{image_tokens}.safetensors")


def stored_features(task: Task) -> Callable[[Sequence[str]], torch.Tensor]:
    """The function that reads features (R, N, D) of image ids from the mapped file."""
    stored = safe_open(task.folder / f"features-{task.image_tokens}.safetensors", framework="pt").get_slice("tokens")
    return lambda image_ids: torch.stack([stored[row : row + 1][0] for row in picture_numbers(image_ids)]).float()


class Finished(Exception):
    """All steps have been timed."""


class Clock:
    """Stands where a training's keeper does: reads the clock after every step, and ends the training."""

    def __init__(self, task: Task):
        self.first, self.last = task.warm_up, task.warm_up + task.steps
        self.times: list[tuple[float, float]] = []
        self.loss = 0.0
        self.profiler = None
        if task.profiled:
            self.profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    def load(self) -> None:
        """No earlier attempt."""

    def save(self, state: Any) -> None:
        """Keep nothing."""

    def ask(self, capture: Callable[[], Any], place: str) -> None:
        """Called once before the first step, by its validation of one batch, and then after each."""
        step = len(self.times)
        if step == 1:
            learnt = capture().record["progress"]["learnt"]
            self.loss = learnt["loss"] / learnt["tokens"]
        if self.profiler and step == self.first:
            self.profiler.start()
        self.times.append((time.perf_counter(), queued()))
        if step == self.last:
            if self.profiler:
                self.profiler.stop()
            raise Finished


def found_between(start: tuple[float, float], stop: tuple[float, float], steps: int, loss: float) -> Found:
    """What lies between two readings of clock and queue, and the memory so far."""
    return Found(stop[0] - start[0], stop[1] - start[1], steps, loss, peak_memory())


def measure_triptych(task: Task) -> Found:
    """Train with Triptych."""
    settings = load_settings(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    stage = stage_settings(task.stage)
    device = best_device()
    dtype = compute_dtype("auto", device)
    base = checkpoint.Base(task.folder / "language_model", WIDTH, {})
    lora = settings.lora if "lora" in stage.train else None
    model = checkpoint.build(base, None, settings.connector, lora, SEED, SPLIT, dtype, device)
    prompt = load_prompt_tokens(task.folder)
    samples = slake_samples(prompt)[0]
    features = stored_features(task)
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
    found.flops = sum(model_flops(batch, config, lora.rank if lora else 0) for batch in timed)
    if task.profiled:
        found.parts = breakdown(clock.profiler, found.seconds, config.vocab_size)
        start = time.perf_counter()
        for chosen in steps_of(samples, task.seed)[clock.first : clock.last]:
            pack(chosen, features, prompt, task.image_tokens)
        found.parts[PACKING] = (time.perf_counter() - start) / found.seconds
    else:
        found.gemm = gemm_rate(dtype)
        found.limit = layers_rate(
            sum(int((batch.blocks != PADDING).sum()) for batch in timed) // len(timed), config, dtype
        )
    return found


def steps_of(samples: Sequence[Sample], seed: int) -> list[list[Sample]]:
    """The samples of each of Triptych's steps, in one epoch."""
    return epoch_batches(samples, BATCH, seed, [*KEY, "1"])


def packed_tokens(samples: Sequence[Sample], prompt: PromptTokens, image_tokens: int) -> Batch:
    """A step as Triptych packs it, without the features."""
    return pack(samples, lambda image_ids: torch.empty(len(image_ids), 0, 0), prompt, image_tokens)


def model_flops(batch: Batch, config: Any, rank: int) -> float:
    """FLOPs that one step needs; see the top of this file. `rank` is that of LoRA on q and v, 0 for none."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    keys = config.num_key_value_heads * config.head_dim
    real = batch.blocks != PADDING
    tokens, image, answers = int(real.sum()), batch.image_columns.numel(), len(batch.targets)
    pairs = int((batch.attention_mask()[:, 0] & real[:, :, None]).sum())
    weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * config.intermediate_size)
    frozen = 2 * (2 * weights * tokens + 2 * hidden * config.vocab_size * answers)
    attention = 3 * 4 * hidden * layers * pairs
    connector = (2 * 2 * WIDTH * hidden + 3 * 2 * hidden * hidden) * image
    lora = 3 * 2 * rank * (3 * hidden + keys) * layers * tokens
    return frozen + attention + connector + lora


def gemm_rate(dtype: torch.dtype) -> float:
    """The machine's highest rate of matrix products, FLOP/s: best of 20 tries of each shape."""
    shapes = [(rows, 576, 1536) for rows in (160, 480, 960, 2048)] + [(1024, 1024, 1024)]
    rates = []
    for rows, inner, columns in shapes:
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(4):
                left @ right.T
            rates.append(4 * 2 * rows * inner * columns / (time.perf_counter() - start))
    return max(rates)


def layers_rate(tokens: int, config: Any, dtype: torch.dtype) -> float:
    """FLOP/s of all frozen layers' matrix products, forward and backward, at so many tokens; best of three."""
    hidden, inner, keys = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    shapes = [(hidden, hidden)] * 2 + [(keys, hidden)] * 2 + [(inner, hidden)] * 2 + [(hidden, inner)]
    layers = [torch.randn(shape).to(dtype) for _ in range(config.num_hidden_layers) for shape in shapes]
    inputs, gradients = (
        {size: torch.randn(tokens, size).to(dtype) for size in (hidden, inner, keys)} for _ in range(2)
    )
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        for weight in layers:
            inputs[weight.shape[1]] @ weight.T
        for weight in layers:
            gradients[weight.shape[0]] @ weight
        rates.append(2 * 2 * tokens * sum(map(torch.numel, layers)) / (time.perf_counter() - start))
    return max(rates)


def label_modules(model: nn.Module) -> None:
    """Let the profiler see which of PARTS a module's forward pass belongs to."""

    def part(name: str, module: nn.Module) -> str | None:
        if name.startswith("connector"):
            return CONNECTOR
        if "lora_" in name or hasattr(module, "lora_A"):
            return LORA
        if isinstance(module, nn.Linear):
            return HEAD if name.endswith("lm_head") else LAYERS
        ends = {"self_attn": ATTENTION, "mlp": GATE}
        return NORMS if type(module).__name__.endswith("Norm") else ends.get(name.rsplit(".", 1)[-1])

    def label(module: nn.Module, name: str) -> None:
        open_ones = []
        module.register_forward_pre_hook(lambda *_: open_ones.append(record_function(name).__enter__()))
        module.register_forward_hook(lambda *_: open_ones.pop().__exit__(None, None, None))

    for name, module in model.named_modules():
        if found := part(name, module):
            label(module, found)


def breakdown(profiler: profile, seconds: float, vocabulary: int) -> dict[str, float]:
    """Share of `seconds` of each of PARTS, and of PRODUCTS.

    A forward operation belongs to the innermost module that is labelled, a backward one to its forward operation's
    part, which has the same sequence number. Time between operations is Python's, and the profiler's own.
    """
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    forward: dict[int, str] = {}
    shares = dict.fromkeys([*PARTS, PRODUCTS], 0.0)
    for event in events:
        part, parent = OTHER, event
        sizes = {size for shape in event.input_shapes or [] for size in shape if isinstance(size, int)}
        while parent is not None:
            if parent.name in PARTS:
                part = parent.name
            elif parent.name.startswith(("Optimizer.", "aten::linalg_vector_norm", "aten::_foreach")):
                part = OPTIMISER
            elif parent.name.startswith("autograd::engine"):
                part = forward.get(parent.sequence_nr, OTHER)
            else:
                parent = parent.cpu_parent
                continue
            break
        else:
            if vocabulary in sizes and event.name != "aten::embedding":
                part = HEAD
            if event.sequence_nr >= 0:
                forward[event.sequence_nr] = part
        if parent is not None and parent.name in PARTS and event.sequence_nr >= 0:
            forward[event.sequence_nr] = part
        share = event.self_cpu_time_total / 1e6 / seconds
        shares[part] += share
        if event.name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"):
            shares[PRODUCTS] += share
    shares[PYTHON] += 1 - sum(shares[part] for part in PARTS)
    return shares


class CachedTower(nn.Module):
    """Stands where the vision tower does, and passes on features that were computed before."""

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        """Features (B, N, D) as the tower's hidden states."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pixel_values, None, (pixel_values, pixel_values))


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
    from transformers import LlavaForConditionalGeneration as Llava
    from transformers import Trainer, TrainerCallback, TrainingArguments

    settings = load_settings(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    stage = stage_settings(task.stage)
    device = best_device()
    dtype = compute_dtype("auto", device)
    prompt = load_prompt_tokens(task.folder)
    samples = slake_samples(prompt)[0]
    model = Llava.from_pretrained(task.folder / f"llava-{task.image_tokens}", dtype=dtype).requires_grad_(False)
    model.config.use_cache = False
    projector = model.model.multi_modal_projector.float()
    hidden = model.config.text_config.hidden_size
    connector = build_connector(settings.connector, WIDTH, hidden, derive_seed(SEED, "connector", SPLIT))
    projector.load_state_dict(connector.state_dict())
    if task.contender == "Trainer":
        pixels = pictures()
    else:
        model.model.vision_tower = CachedTower()
        features = stored_features(task)
    if "lora" in stage.train:
        lora = settings.lora
        layers = rf".*language_model.*\.({'|'.join(lora.target_modules)})"
        options = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
        model = get_peft_model(model, LoraConfig(**options, target_modules=layers, task_type="CAUSAL_LM"))
    projector.requires_grad_(True)

    def collate(rows: list[Sample]) -> dict[str, torch.Tensor]:
        image_ids = [sample.image_id for sample in rows]
        cached = task.contender != "Trainer"
        images = features(image_ids) if cached else normalised(pixels[picture_numbers(image_ids)])
        return {**padded_rows(rows, prompt, task.image_tokens), "pixel_values": images}

    loss = 0.0
    if task.check:
        same = collate(steps_of(samples, task.seed)[0])
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
            times.append((time.perf_counter(), queued()))

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
            dataloader_pin_memory=False,
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


def apart(function: Callable, *arguments: Any) -> Any:
    """Call a function in a new process, which has Triptych imported already and nothing more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["triptych.train.loop", "transformers.models.llama.modeling_llama"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


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


def cell(values: Sequence[float], decimals: int) -> str:
    """Median, and the range."""
    middle, least, most = (f"{part(values):.{decimals}f}" for part in (statistics.median, min, max))
    return middle if least == most else f"{middle} ({least} to {most})"


def print_table(*rows: Sequence[Any]) -> None:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    print("", lines[0], "|---" * len(rows[0]) + "|", *lines[1:], sep="\n", flush=True)


def rate(found: Found) -> float:
    """Samples per second, without the time in the queue."""
    return BATCH * found.steps / (found.seconds - found.waiting)


def print_results(results: dict[tuple[int, str], dict[str, list[Found]]]) -> None:
    """Speed and memory, and how Triptych compares."""
    head = ["image tokens", "stage", "contender", "samples/s (median, range)", "waiting", "peak MB", "bar"]
    rows = [[*head, *itertools.chain(*([f"{name} is faster by", "its memory"] for name in ENGINES))]]
    for (image_tokens, stage), by_contender in results.items():
        for name, founds in by_contender.items():
            speed = cell([BATCH * found.steps / found.seconds for found in founds], 2)
            waiting = statistics.median(found.waiting / found.seconds for found in founds)
            memory = statistics.median(found.memory for found in founds)
            bar = BARS.get((image_tokens, name))
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


def print_tokens(samples: Sequence[Sample], prompt: PromptTokens) -> None:
    """What packing saves, over a whole epoch."""
    head = ["padding, Triptych", "padding, one question a row", "tokens a question, Triptych", "one question a row"]
    rows = [["image tokens", *head, "saved by sharing images", "saved with the padding"]]
    for image_tokens in IMAGE_TOKENS:
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
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of Triptych; Trainer does fewer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round of a few steps: does everything work?")
    arguments = parser.parse_args()
    rounds, steps = (1, 4) if arguments.quick else (arguments.rounds, arguments.steps)
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "KINETO_LOG_LEVEL": "5"}  # bars and memory are those of processors
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
        models = load_settings(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))).models
        prepare_model("language_model", models.language_model, default_cache(), folder / "language_model")
        for image_tokens in IMAGE_TOKENS:
            apart(write_llava, folder, image_tokens)
        prompt = load_prompt_tokens(folder)
        samples, origin = slake_samples(prompt)
        print(f"questions: {origin}: {len(samples)} of {len({sample.image_id for sample in samples})} images")
        dtype = str(compute_dtype("auto", best_device())).removeprefix("torch.")
        threads = f"{arguments.threads} thread{'s' * (arguments.threads > 1)}"
        print(f"{dtype}, {threads}, {BATCH} samples a step; {rounds} rounds", flush=True)
        cases = itertools.product(IMAGE_TOKENS, STAGES)
        results: dict = {case: {name: [] for name in CONTENDERS} for case in cases}
        loads = []
        for turn in range(rounds):
            for (image_tokens, stage), by_contender in results.items():
                for place in range(len(CONTENDERS)):
                    name = CONTENDERS[(turn + place) % len(CONTENDERS)]
                    if turn and name not in ENGINES and (image_tokens, name) not in BARS:
                        continue
                    # Trainer's steps take long and are much alike.
                    timed = (4, steps) if name in ENGINES else (1, max(1, 50 * steps // image_tokens // 4))
                    task = Task(folder, name, image_tokens, stage, arguments.threads, *timed, SEED + turn, turn == 0)
                    by_contender[name].append(found := apart(measure, task))
                    loads.append(os.getloadavg()[0])
                    what = f"round {turn + 1}, {image_tokens} image tokens, stage {stage}, {name}"
                    print(f"{what}: {rate(found):.2f} samples/s, {found.memory:.0f} MB", file=sys.stderr, flush=True)
        parts = [
            apart(measure, Task(folder, "Triptych", *case, arguments.threads, 2, 4, SEED, profiled=True)).parts
            for case in results
        ]
    print_results(results)
    print_losses(results)
    print_tokens(samples, prompt)
    print_utilisation(results)
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
