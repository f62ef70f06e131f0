"""The parts of bench_gpu.py: each measures one thing on whichever device there is, and gives a record for JSON."""

import importlib.util
import io
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from contenders import padded_rows
from flops import gemm_rate, layer_shapes, now
from llava import peak_memory
from random_models import PROMPT, Size, captions, questions, random_features, random_llava, random_model, settings_for
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer as PlainTrainer
from transformers import TrainerCallback, TrainingArguments
from triptych.config.runtime import Runtime
from triptych.evaluate.generate import generate
from triptych.evaluate.ready import make_ready
from triptych.model.tokens import Sample
from triptych.train.optimizer import make_optimiser
from triptych.train.trainer import Trainer
from triptych.utils.device import attention_kind, best_device, compute_dtype, mixed_precision

ROOT = Path(__file__).parent.parent
BATCH = 16
FIRST = 50  # steps at the start that are compared with as many steady ones
STEADY = 60
SHARE = 0.85  # of its time, after which a part stops measuring, to have its numbers before it is stopped
PROFILED = 3  # steps
LONGEST = 16  # tokens of an answer
KEY = ["bench"]


class Enough(Exception):
    """All steps have been timed, or there is no time for more."""


def device_part(size: Size, seconds: float, tries: int = 20) -> dict[str, Any]:
    """Versions, ceilings of the device, and the first use of attention at shapes that are new."""
    device = best_device()
    dtype = compute_dtype("auto", device)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dtype": str(dtype).removeprefix("torch."),
        "gemm_tflops": gemm_rate(dtype, device, tries) / 1e12,
    }
    numbers = 2**28 if device.type == "cuda" else 2**22
    source = torch.ones(numbers, device=device, dtype=dtype)
    target = torch.empty_like(source)
    took = []
    for _ in range(5):
        start = now()
        target.copy_(source)
        took.append(now() - start)
    found["bandwidth_gb_s"] = 2 * source.nbytes / min(took) / 1e9
    for number, cudnn in enumerate((True, False)):
        times = [_attention_times(size, 640 + 72 * (2 * turn + number), device, dtype, cudnn) for turn in range(3)]
        kind = "on" if cudnn else "off"
        found[f"attention_first_s_cudnn_{kind}"] = [first for first, _ in times]
        found[f"attention_again_s_cudnn_{kind}"] = [again for _, again in times]
    return found


def _attention_times(
    size: Size, length: int, device: torch.device, dtype: torch.dtype, cudnn: bool
) -> tuple[float, float]:
    """Seconds of masked attention, forward and backward, at the first use of a length and at the second."""
    heads = size.config.num_attention_heads
    width = size.config.hidden_size // heads
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    inputs = [torch.randn(4, heads, length, width, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    mask = torch.ones(4, 1, length, length, dtype=torch.bool, device=device).tril()
    took = []
    for _ in range(2):
        start = now()
        nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask).sum().backward()
        took.append(now() - start)
    return took[0], took[1]


def tests_part(size: Size, seconds: float) -> dict[str, Any]:
    """What must hold on a GPU: tests/train/test_cuda.py."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/train/test_cuda.py"]
    # It must end before this process is ended, or it would go on using the GPU beside the next parts.
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=0.9 * seconds)
    lines = run.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"status": run.returncode, "summary": lines[-1] if lines else run.stderr[-500:], "failed": failed}


class Watch:
    """Takes the place of a training's autosaver: reads the clock after its steps, and ends the training."""

    def __init__(self, deadline: float, every: int, last: int, after: Callable[[int], None] = lambda step: None):
        self.deadline, self.every, self.last, self.after = deadline, every, last, after
        self.step = -1  # it is called once before the first, by the validation
        self.marks: dict[int, float] = {}
        self.graphs: dict[int, int] = {}

    def load(self) -> None:
        """No earlier attempt."""

    def save(self, state: object) -> None:
        """Keep nothing."""

    def save_if_due(self, state_dict: object, place: str) -> None:
        """Called after every step."""
        self.step += 1
        if self.step in (0, 1, FIRST) or self.step % self.every == 0 or self.step >= self.last:
            self.marks[self.step] = now()
            self.graphs[self.step] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        self.after(self.step)
        if self.step >= self.last or time.perf_counter() > self.deadline:
            raise Enough


def _trainer(size: Size, name: str, watch: Watch, compiled: str) -> Trainer:
    device = best_device()
    batch = {} if name == "1" else {"batch_size": BATCH}
    stage, lora = settings_for(name, epochs=3, **batch)
    model = random_model(size, lora, device, compute_dtype("auto", device), attention_kind(device))
    samples = captions(size, 40 * stage.batch_size) if name == "1" else questions(size)
    inputs = samples, samples[:1], random_features(size, torch.bfloat16), PROMPT
    return Trainer(model, *inputs, stage, "auto", 0, KEY, watch, Runtime(compile=compiled))


def _train(trainer: Trainer) -> None:
    with redirect_stdout(io.StringIO()), suppress(Enough):
        trainer.setup()
        for _ in trainer.run():
            pass


def stage_part(name: str, size: Size, seconds: float, steps: int = FIRST + STEADY) -> dict[str, Any]:
    """The first part of an epoch of a stage, start included, and steady steps after it."""
    start = time.perf_counter()
    torch._dynamo.utils.counters.clear()
    watch = Watch(start + SHARE * seconds, 10, steps)
    _train(trainer := _trainer(size, name, watch, "always" if torch.cuda.is_available() else "never"))
    batch, marks = trainer.stage.batch_size, watch.marks
    begin = max((step for step in marks if step <= min(FIRST, watch.step // 2)), default=0)
    end = max(marks)
    found: dict[str, Any] = {"steps": watch.step, "batch": batch, "start_s": marks.get(1, marks[end]) - start}
    if end > begin:
        rate = batch * (end - begin) / (marks[end] - marks[begin])
        flops = flops_per_sample(size, trainer.training)
        first = max(step for step in marks if step <= FIRST)
        found |= {
            "samples_per_s": rate,
            "plan_flops_per_sample": flops,
            "plan_tflops": rate * flops / 1e12,
            "first_steps": first,
            "first_steps_over_steady_s": marks[first] - start - first * batch / rate,
            "graphs": watch.graphs[end],
            "graphs_in_steady_steps": watch.graphs[end] - watch.graphs[begin],
        }
    return found | {"peak_mb": peak_memory()}


def flops_per_sample(size: Size, samples: Sequence[Sample]) -> float:
    """Work of a sample as `triptych plan` counts it: 2 x 2 x weights for each token, images shared in a step."""
    weights = sum(outputs * inputs for outputs, inputs in layer_shapes(size.config).values())
    shared = min(len(samples) / len({sample.image_id for sample in samples}), BATCH)
    text = sum(len(sample.text) for sample in samples) / len(samples)
    return 4 * weights * size.config.num_hidden_layers * (size.image_tokens / shared + text)


def profile_part(size: Size, seconds: float, warm_up: int = 20) -> dict[str, Any]:
    """Kernels of a steady step of stage 3, the share of time that the GPU is busy, and waits of the host."""
    start = time.perf_counter()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    profiler = profile(activities=kinds)
    times = []

    def after(step: int) -> None:
        if step in (warm_up, warm_up + PROFILED):
            times.append(now())
            (profiler.start if step == warm_up else profiler.stop)()

    watch = Watch(start + SHARE * seconds, 10**9, warm_up + PROFILED, after)
    _train(_trainer(size, "3", watch, "always" if torch.cuda.is_available() else "never"))
    if len(times) < 2:
        return {"skipped": f"only {watch.step} steps fitted in {seconds:.0f} s"}
    events = profiler.events()
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    on_gpu = [event for event in on_gpu if not getattr(event, "is_user_annotation", False)]
    kernels = [event for event in on_gpu if not event.name.startswith(("Memcpy", "Memset"))]
    spans = sorted((event.time_range.start, event.time_range.end) for event in on_gpu)
    waits = [event for event in events if event.name in ("cudaStreamSynchronize", "cudaEventSynchronize")]
    reads = [event for event in events if event.name == "aten::_local_scalar_dense"]
    busy, until = 0.0, 0.0
    for first, last in spans:
        busy += max(0.0, last - max(first, until))
        until = max(until, last)
    taken = times[1] - times[0]
    names: dict[str, float] = {}
    for event in kernels:
        names[event.name] = names.get(event.name, 0.0) + (event.time_range.end - event.time_range.start) / 1e6 / taken
    longest = sorted(names.items(), key=lambda item: -item[1])[:10]
    return {
        "step_ms": 1e3 * taken / PROFILED,
        "kernels_a_step": len(kernels) / PROFILED,
        "busy": busy / 1e6 / taken,
        "waits_a_step": len(waits) / PROFILED,
        "host_reads_a_step": len(reads) / PROFILED,
        "longest": {name[:80]: round(share, 4) for name, share in longest},
    }


def rival_part(kind: str, size: Size, seconds: float, steps: int = 40, backend: str = "inductor") -> dict[str, Any]:
    """transformers' Trainer on stage 3, features computed before, rows padded to multiples of 64.

    Args:
        kind: `plain`, `liger` (with Liger's kernels) or `compile` (with `torch_compile`).
        size: of the models.
        seconds: for all of it.
        steps: most of them.
        backend: that compiles.
    """
    if kind == "liger" and importlib.util.find_spec("liger_kernel") is None:
        return {"skipped": "liger_kernel is not installed (pip install liger-kernel)"}
    start = time.perf_counter()
    device = best_device()
    dtype = compute_dtype("auto", device)
    stage, lora = settings_for("3", epochs=1, batch_size=BATCH)
    model, features = random_llava(size, lora, device, dtype), random_features(size, dtype)
    trained = {
        name if ".lora_" in name else f"connector.{name}": parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    times = [now()]

    class Clock(TrainerCallback):
        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            times.append(now())
            control.should_training_stop |= times[-1] > start + SHARE * seconds

    def collate(rows: list[Sample]) -> dict[str, torch.Tensor]:
        batch = padded_rows(rows, PROMPT, size.image_tokens)
        missing = -batch["input_ids"].shape[1] % 64
        fill = {"input_ids": PROMPT.end, "attention_mask": 0, "labels": -100}
        batch = {name: nn.functional.pad(batch[name], (0, missing), value=value) for name, value in fill.items()}
        return {**batch, "pixel_values": features([sample.image_id for sample in rows])}

    nowhere = tempfile.TemporaryDirectory()  # nothing is saved, but Trainer makes the folder
    arguments = TrainingArguments(
        output_dir=nowhere.name,
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        bf16=dtype == torch.bfloat16,
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_liger_kernel=kind == "liger",
        torch_compile=kind == "compile",
        torch_compile_backend=backend if kind == "compile" else None,
    )
    optimisers = make_optimiser(trained, stage, steps)
    options = {"train_dataset": questions(size), "data_collator": collate, "callbacks": [Clock()]}
    with redirect_stdout(io.StringIO()):
        PlainTrainer(model, arguments, optimizers=optimisers, **options).train()
    nowhere.cleanup()
    half = len(times) // 2
    steady = [after - before for before, after in pairwise(times[half:])]
    found: dict[str, Any] = {"steps": len(times) - 1, "first_step_s": times[1] - times[0] if len(times) > 1 else None}
    if steady:
        found["samples_per_s"] = BATCH * len(steady) / sum(steady)
    return found | {"peak_mb": peak_memory()}


def answering_part(size: Size, seconds: float, number: int = 64) -> dict[str, Any]:
    """Answers to questions by a model with adapters, the second time that they are asked."""
    device = best_device()
    _, lora = settings_for("3")
    model = random_model(size, lora, device, compute_dtype("auto", device), attention_kind(device)).eval()
    features, samples = random_features(size), questions(size)[:number]
    ready = make_ready(model, "auto", LONGEST * len(samples))
    times, answers = [], []
    for _ in range(2):
        start = now()
        with mixed_precision("auto", device):
            answers, _ = generate(model.requires_grad_(False), samples, features, PROMPT, LONGEST)
        times.append(now() - start)
    return {
        "ready": ready,
        "questions": len(samples),
        "questions_per_s": len(samples) / times[1],
        "first_s": times[0],
        "tokens_an_answer": sum(map(len, answers)) / len(answers),
        "peak_mb": peak_memory(),
    }
