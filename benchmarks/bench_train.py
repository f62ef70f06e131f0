"""How fast and how lean is training? Against `transformers.Trainer` with `LlavaForConditionalGeneration`, side by side.

    make bench-train

The same language model, connector, adapters, questions, samples a step, optimiser and precision for all: on a CPU
SmolLM2-135M with images of 50 and 196 tokens, on a GPU a model of TinyLlama-1.1B's shape with 576.

- Triptych: `triptych.train.trainer.train` as the workflow calls it, with `runtime.compile: never`, and with `always`
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
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from contenders import BATCH, CONTENDERS, ENGINES, Found, Task, measure, packed_tokens, steps_of
from flops import PACKING, PARTS, PRODUCTS
from llava import LANGUAGE_MODELS, SEED, apart, image_tokens_of, prepare
from printed import cell, print_table
from triptych.model.packing import PADDING
from triptych.model.tokens import PromptTokens, Sample
from triptych.utils.device import best_device, compute_dtype

STAGES = ("2", "3")
BARS = {(50, "Trainer"): 6, (50, "Trainer, cached"): 3, (196, "Trainer"): 8}  # how many times faster Triptych must be
UTILISATION_BAR = 0.5
LOSS_TOLERANCE = 0.02  # of the loss, between contenders: bf16 has three digits


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
