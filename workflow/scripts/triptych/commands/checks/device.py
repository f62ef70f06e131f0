"""Checks of what computes: the device, its precision, its speed, and one training of a tiny model on it."""

import io
import time
import warnings
from contextlib import redirect_stdout

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from triptych.commands.checks.finding import Finding, Place, fault, ok, warning
from triptych.commands.cost import kept_gb, quantised, training_gb, tuned, tuned_in_words
from triptych.config.stages import Connector, Lora, Stage
from triptych.errors import TriptychError, message_of
from triptych.model.architectures import supported_attention
from triptych.model.connector import build_connector
from triptych.model.tokens import PromptTokens, Sample
from triptych.model.vlm import VisionLanguageModel, add_lora
from triptych.train.trainer import train
from triptych.utils.device import attention_kind, best_device, compute_dtype, cores, device_name, free_memory
from triptych.utils.optional import why_no_4_bits, why_no_8_bits

SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices that are multiplied
SECONDS = {"cuda": 2.0, "cpu": 1.0}
SLOW = 0.25  # of the rate that the plan assumes
MODELS_GB = 8  # memory of a GPU below which no supported study fits


def device(place: Place) -> Finding:
    """The device that jobs of this kind get: a GPU that was asked for and given can be used."""
    found = best_device()  # or an error, which says what was asked for
    if place.gpus and place.study.settings.runtime.device != "cpu" and found.type != "cuda":
        return fault(
            f"the profile asks for {place.gpus} GPU here, and torch {torch.__version__} finds none; it would compute "
            "on the CPU",
            "see the line `driver`; does the partition have GPUs? (sinfo -o '%P %G')",
        )
    if found.type == "cuda":
        count, free = torch.cuda.device_count(), free_memory(found) / 1e9
        said = f"{device_name(found)}, {count} of them, {free:.0f} GB free"
        if place.gpus and count < place.gpus:
            return fault(f"{said}; the profile asks for {place.gpus}", "look at gres in the profile")
        if free < MODELS_GB:
            return warning(said, "another process uses this GPU: look at nvidia-smi")
        return ok(said)
    why = "; runtime.device: cpu" if place.study.settings.runtime.device == "cpu" else ""
    return ok(f"cpu, {cores()} cores, {free_memory(found) / 1e9:.0f} GB free{why}")


def precision(place: Place) -> Finding:
    """bf16: whether the device multiplies it, and what `training.precision` then means."""
    found, wanted = best_device(), place.study.settings.training.precision
    native = compute_dtype("auto", found) == torch.bfloat16
    used = str(compute_dtype(wanted, found)).removeprefix("torch.")
    said = f"bf16 {'is' if native else 'is not'} native; training.precision {wanted}: {used}"
    if not native and wanted == "bf16":
        return warning(said, "it is emulated, and slow: use precision: auto, or another kind of GPU")
    if not native and found.type == "cuda":
        return warning(said, "fp32 takes twice the memory; a GPU of Ampere or newer has bf16")
    a, b = (torch.randn(64, 64, device=found).to(torch.bfloat16) for _ in range(2))
    off = ((a @ b).float() - a.float() @ b.float()).abs().max().item()
    if off > 0.5:  # rounding of sums near 30 is below 0.13
        return fault(f"a product of bf16 matrices is off by {off:.2g}", "the device computes wrong results")
    return ok(said)


def products(place: Place) -> Finding:
    """The rate of matrix products, the most that training can reach."""
    found = best_device()
    dtype = compute_dtype(place.study.settings.training.precision, found)
    side = SIDE[found.type]
    a, b = (torch.randn(side, side, device=found, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    _wait(found)
    start, number = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < SECONDS[found.type]:
        a @ b
        _wait(found)
        number += 1
    rate = number * 2 * side**3 / spent / 1e12
    name = str(dtype).removeprefix("torch.")
    said = f"{rate:.3g} TFLOP/s ({name}, {side} x {side})"
    assumed = place.study.settings.plan.tflops
    if found.type == "cuda" and rate < SLOW * assumed:
        return warning(
            f"{said}; the plan assumes {assumed:g}",
            "another process uses this GPU, or it is of another kind: set plan.tflops, so that plans are right",
            gpu_tflops=rate,
        )
    return ok(said, **{"gpu_tflops" if found.type == "cuda" else "cpu_tflops": rate})


def tuning(place: Place) -> Finding:
    """Trainings of a model's own weights, against the device's memory; optimisers, against packages."""
    found, study = best_device(), place.study
    stages = [study.grid.stage_of(prefix) for prefix in study.grid.prefixes]
    if any(stage.optimizer == "adamw-8bit" for stage in stages) and (obstacle := why_no_8_bits(found.type)):
        return fault(obstacle, "see `optimizer` in docs/configuration.md")
    if quantised(study) and (obstacle := why_no_4_bits(found.type)):
        return fault(obstacle, "see `quantise` of the language model in docs/configuration.md")
    prefixes = [prefix for prefix in study.grid.prefixes if tuned(study, prefix)]
    needs = {prefix: training_gb(study, prefix) + kept_gb(study, prefix) for prefix in prefixes}
    if not needs:
        return ok("no stage trains the own weights of a model")
    prefix, needed = max(needs.items(), key=lambda item: item[1])
    free = free_memory(found) / 1e9
    whose = tuned_in_words(study, prefix)
    said = f"{prefix} takes {needed:.1f} GB for {whose} weights, gradients and optimiser; {free:.1f} free"
    if needed > free:
        less = "fewer vision.blocks, a smaller batch_size, " if kept_gb(study, prefix) else ""
        return fault(said, f"use {less}optimizer: adafactor or adamw-8bit, a device with more memory, or train: [lora]")
    return ok(said)


def training(_: Place) -> Finding:
    """Both kinds of training of a tiny model, through the trainer of a study: connector, then connector and LoRA."""
    found = best_device()
    start = time.perf_counter()
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            losses = [_train(found, parts) for parts in (["connector"], ["connector", "lora"])]
    except (TriptychError, RuntimeError) as error:
        return fault(
            f"training a tiny model on {found.type} fails: {message_of(error)[:300]}",
            "look at the driver and the build of torch; compare with TRIPTYCH_DEVICE=cpu",
        )
    _wait(found)
    if any(after >= before for before, after in losses):
        return fault(f"training a tiny model learns nothing (loss {losses})", "the device computes wrong results")
    taken = time.perf_counter() - start
    fell = ", ".join(f"{before:.2f} -> {after:.2f}" for before, after in losses)
    return ok(f"two trainings of a tiny model on {found.type} in {taken:.1f} s; loss {fell}")


def _train(device: torch.device, parts: list[str]) -> tuple[float, float]:
    """Train a tiny model of random weights on answers that its images give away; gives the loss before and after."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, eos_token_id=1, pad_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    config._attn_implementation = supported_attention(config, attention_kind(device))
    language_model = LlamaForCausalLM(config).to(compute_dtype("auto", device)).eval().requires_grad_(False)
    model = VisionLanguageModel(build_connector(Connector(), 16, 64, seed=0), language_model)
    if "lora" in parts:
        model.language_model = add_lora(model.language_model, Lora(rank=4, alpha=8), seed=0)
    model = model.to(device)
    images = {f"image{number}": torch.randn(4, 16) for number in range(8)}
    samples = [
        Sample(f"q{number}", name, question=(5, 6), answer=(10 + number % 4, 1)) for number, name in enumerate(images)
    ]
    prompt = PromptTokens((2,), lambda _: (5, 6), lambda _: (10, 1), 1)
    stage = Stage(data="tiny", train=parts, learning_rate=dict.fromkeys(parts, 0.02), epochs=4, batch_size=4)

    def features(names: list[str]) -> torch.Tensor:
        return torch.stack([images[name] for name in names])

    rows = list(train(model, samples, samples, features, prompt, stage, "auto", 0, ["doctor", "tiny"]))
    return rows[0]["validation_loss"], rows[-1]["validation_loss"]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
