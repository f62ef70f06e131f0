"""How fast are answers generated? Against `LlavaForConditionalGeneration.generate`, one question at a time.

    make bench-predict

The same language model, connector, questions and longest answer for all. The connector is first trained for some steps
on the questions, so that answers are as short as trained models' are.

- Triptych: `triptych.evaluate.generate` as the workflow calls it, 16 questions at a time and 64 (the default); the
  prefix of an image runs once for all its questions; stored vision features;
- generate: plain transformers, one question at a time, the vision tower in the loop (as peers evaluate);
- generate, cached: the same, with vision features that were computed before;
- gold answers: no contender, but what Triptych adds to one view: log-probabilities of as many gold answers.

Each measurement is a process of its own; contenders take turns; medians over rounds count. Time in which the process
was ready to run and had no core is left out of the ratios. Answers are compared: bf16 rounds differently in batches, so
a few may differ.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_features import queued
from flops import now
from llava import (
    IMAGE_TOKEN,
    LANGUAGE_MODELS,
    WIDTH,
    CachedTower,
    apart,
    image_numbers,
    image_tokens_of,
    load_llava,
    load_prompt_tokens,
    normalised,
    peak_memory,
    prepare,
    random_images,
    settings_of,
    slake_samples,
    stored_features,
)
from printed import cell, print_table
from safetensors.torch import load_file, save_file
from triptych.evaluate.generate import generate
from triptych.evaluate.gold import gold_logprobs
from triptych.model import checkpoint
from triptych.model.tokens import Sample
from triptych.train.trainer import train
from triptych.utils.device import best_device, compute_dtype, mixed_precision

BATCHES = (16, 64)
GOLD = "gold answers"
CONTENDERS = (*(f"Triptych, {size} at a time" for size in BATCHES), "generate", "generate, cached", GOLD)
BAR = 5  # how many times faster than one question at a time
LONGEST = 16  # tokens of an answer


@dataclass(frozen=True)
class Task:
    """One measurement, for a process of its own."""

    folder: Path
    language_model: str
    contender: str
    image_tokens: int
    questions: int
    threads: int


@dataclass
class Found:
    """Seconds, of these without a core, the answers' token ids, and the largest resident size in MB."""

    seconds: float
    waiting: float
    answers: list[list[int]]
    memory: float


class Enough(Exception):
    """The connector is trained."""


class StopsAfter:
    """Takes the place of a training's autosaver: ends the training after some steps, and saves nothing."""

    def __init__(self, steps: int):
        self.left = steps + 1  # it is called once before the first

    def load(self) -> None:
        """No earlier attempt."""

    def save(self, state: object) -> None:
        """Save nothing."""

    def save_if_due(self, state_dict: object, place: str) -> None:
        """Called after every step."""
        self.left -= 1
        if not self.left:
            raise Enough


def build(folder: Path, language_model: str, image_tokens: int) -> torch.nn.Module:
    """Triptych's model with a fresh connector, or the trained one where there is one."""
    device = best_device()
    base = checkpoint.Base(folder / "language_model", WIDTH, {})
    dtype = compute_dtype("auto", device)
    model = checkpoint.build(base, None, settings_of(language_model).connector, None, 0, "shared", dtype, device)
    if (file := folder / f"connector-{image_tokens}.safetensors").exists():
        model.connector.load_state_dict(load_file(file))
    return model


def teach(folder: Path, language_model: str, image_tokens: int, steps: int, threads: int) -> None:
    """Train the connector for some steps, so that answers end where the questions' do, and keep it."""
    torch.set_num_threads(threads)
    settings = settings_of(language_model)
    stage = settings.stages["2"].model_copy(update={"epochs": 1, "batch_size": 16})
    model, prompt = build(folder, language_model, image_tokens), load_prompt_tokens(folder)
    samples = slake_samples(prompt)[0]
    features = stored_features(folder, image_tokens)
    autosaver = StopsAfter(steps)
    with suppress(Enough), redirect_stdout(sys.stderr):
        list(train(model, samples, samples[:1], features, prompt, stage, settings.training, 0, ["predict"], autosaver))
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.connector.state_dict().items()}
    save_file(state, folder / f"connector-{image_tokens}.safetensors")


def asked(folder: Path, number: int) -> list[Sample]:
    """The first questions in the order in which predictions ask them: image by image."""
    return sorted(slake_samples(load_prompt_tokens(folder))[0], key=lambda sample: sample.image_id)[:number]


def measure(task: Task) -> Found:
    """Answer all questions; the first ones are answered once before, to warm up."""
    torch.set_num_threads(task.threads)
    samples = asked(task.folder, task.questions)
    device, prompt = best_device(), load_prompt_tokens(task.folder)
    if not task.contender.startswith("generate"):
        model = build(task.folder, task.language_model, task.image_tokens).eval().requires_grad_(False)
        features = stored_features(task.folder, task.image_tokens)
        size = int(task.contender.split()[1]) if task.contender != GOLD else 0

        def answer(chosen: Sequence[Sample]) -> list[list[int]]:
            if task.contender == GOLD:
                gold_logprobs(model, chosen, features, prompt, "auto")
                return [list(sample.answer[:-1]) for sample in chosen]
            found = []
            for start in range(0, len(chosen), size):
                with mixed_precision("auto", device):
                    found += generate(model, chosen[start : start + size], features, prompt, LONGEST)[0]
            return found
    else:
        model = load_llava(task.folder, task.image_tokens)
        connector = load_file(task.folder / f"connector-{task.image_tokens}.safetensors")
        model.model.multi_modal_projector.load_state_dict(connector)
        model.eval()
        pixels = random_images(task.image_tokens)
        if cached := task.contender == "generate, cached":
            model.model.vision_tower = CachedTower()
            features = stored_features(task.folder, task.image_tokens)
        before = [*prompt.before_image, *[IMAGE_TOKEN] * task.image_tokens]

        def answer(chosen: Sequence[Sample]) -> list[list[int]]:
            found = []
            for sample in chosen:
                rows = [sample.image_id]
                shown = features(rows) if cached else normalised(pixels[image_numbers(rows)])
                ids = torch.tensor([[*before, *sample.question]], device=device)
                with torch.inference_mode(), mixed_precision("auto", device):
                    said = model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        pixel_values=shown.to(device),
                        do_sample=False,
                        max_new_tokens=LONGEST,
                        eos_token_id=prompt.end,
                        pad_token_id=prompt.end,
                    )
                found.append([token for token in said[0, ids.shape[1] :].tolist() if token != prompt.end])
            return found

    answer(samples[: min(8, len(samples))])
    start, before_queue = now(), queued()
    answers = answer(samples)
    return Found(now() - start, queued() - before_queue, answers, peak_memory())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--language-model", choices=LANGUAGE_MODELS, default="tinyllama" if on_gpu else "smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--threads", type=int, default=8 if on_gpu else 1)
    parser.add_argument("--quick", action="store_true", help="one round of few questions: does everything work?")
    arguments = parser.parse_args()
    rounds, questions, steps = (1, 16, 4) if arguments.quick else (arguments.rounds, arguments.questions, 40)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, arguments.threads, arguments.language_model)
        print(f"asked: {questions} questions of {len({s.image_id for s in asked(folder, questions)})} images")
        rows = [["image tokens", "contender", "questions/s (median, range)", "waiting", "peak MB", "tokens an answer"]]
        rows[0] += ["same answers as `generate, cached`", *(f"{name} is faster by" for name in CONTENDERS[:2])]
        for image_tokens in image_tokens_of(arguments.language_model):
            apart(teach, folder, arguments.language_model, image_tokens, steps, arguments.threads)
            found: dict[str, list[Found]] = {name: [] for name in CONTENDERS}
            for turn in range(rounds):
                for place in range(len(CONTENDERS)):
                    name = CONTENDERS[(turn + place) % len(CONTENDERS)]
                    task = Task(folder, arguments.language_model, name, image_tokens, questions, arguments.threads)
                    found[name].append(apart(measure, task))
                    what = f"round {turn + 1}, {image_tokens} image tokens, {name}"
                    print(f"{what}: {questions / found[name][-1].seconds:.2f} questions/s", file=sys.stderr, flush=True)
            for name, own in found.items():
                waiting = statistics.median(one.waiting / one.seconds for one in own)
                pairs = list(zip(own[0].answers, found["generate, cached"][0].answers, strict=True))
                row = [image_tokens, name, cell([questions / one.seconds for one in own], 2), f"{waiting:.0%}"]
                row += [f"{statistics.median(one.memory for one in own):.0f}"]
                row += [f"{statistics.mean(map(len, own[0].answers)):.1f}"]
                row += [f"{sum(mine == other for mine, other in pairs) / len(pairs):.0%}"]
                for engine in CONTENDERS[:2] if name.startswith("generate") else []:
                    both = zip(own, found[engine], strict=True)
                    ratios = [(o.seconds - o.waiting) / (m.seconds - m.waiting) for o, m in both]
                    row.append(f"{cell(ratios, 2)}: {'met' if statistics.median(ratios) >= BAR else 'missed'}")
                rows.append(row + [""] * (len(rows[0]) - len(row)))
    print_table(*rows)
    print(f"\nbar: {BAR} times; load {os.getloadavg()[0]:.1f}; {(time.monotonic() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
