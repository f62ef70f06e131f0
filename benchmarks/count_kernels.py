"""How many kernels does a step take on a GPU? Counted on the CPU, with the path of a GPU: counts are exact.

    make count-kernels            # layers compiled; --eager: as well with nothing compiled

One steady step of Triptych's own `Trainer`: 22 layers and LoRA as config/config.yaml has them for TinyLlama-1.1B, of
tiny width, bf16; 16 samples of SLAKE's numbers and lengths. The width changes no count, and the number of image tokens
neither, so that few are shown; waste and graphs are those of 576. What is counted, and how, is in `counting.py`.

It ends with one line of JSON: of stages 2 and 3, kernels a step, times that the host waits for the device, copies to
the device and compiled graphs; of answering, kernels a token; and `waste`, the share of tokens that is padding.
"""

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from functools import partialmethod, wraps
from typing import Any
from unittest import mock

import torch
from counting import HOST_METHODS, Counts, Recorder, attention_on_cpu, compiled_graphs
from llava import SEED, TINYLLAMA
from printed import print_table
from random_models import NARROW, PROMPT, Size, questions, random_features, random_model, settings_for
from torch.optim import adam
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from triptych.config.runtime import Runtime
from triptych.model.packing import PADDING, Batch, split_by_image
from triptych.model.tokens import Sample
from triptych.train import trainer as engine
from triptych.train.guards import GradientGuard
from triptych.train.route import GPU
from triptych.train.sampling import epoch_batches
from triptych.train.trainer import STEP_TOKENS, Trainer

SMALL = Size(llama=NARROW)
KEY = ["count"]
BATCH = 16
FEW, ALL = 4, 576  # tokens of an image
WARM_UP = 3  # steps; the first two have guards of their own
COPIES = "copies"
PHASES = ("forward", "backward", "clip", "optimiser", "guards", COPIES, Recorder.OTHER)
STAGES = ("2", "3")


def gpu_trainer(
    stage: str,
    samples: Sequence[Sample],
    epochs: int,
    layers: int,
    compiled: bool,
    dropout: float | None = None,
    image_tokens: int = FEW,
) -> Trainer:
    """Triptych's trainer of a stage, on the CPU, with the path that it takes on a GPU."""
    settings, lora = settings_for(stage, epochs=epochs, batch_size=BATCH)
    if lora and dropout is not None:
        lora = lora.model_copy(update={"dropout": dropout})
    size = Size(image_tokens, 16, {**NARROW, "num_hidden_layers": layers})
    model = random_model(size, lora, torch.device("cpu"))
    runtime = Runtime(compile="always" if compiled else "never", gradient_checkpointing="never")
    inputs = samples, samples[:1], random_features(size, torch.bfloat16), PROMPT
    return Trainer(model, *inputs, settings, "bf16", SEED, KEY, None, runtime, GPU)


class Counted(Exception):
    """All steps have been counted."""


@contextmanager
def steps_counted(recorder: Recorder, wanted: int) -> Iterator[list[Counts]]:
    """Count the steps after the first WARM_UP ones, by phase; gives their list, which ends the training when full."""
    found: list[Counts] = []
    done = 0
    step, move = Trainer.train_step, Batch.to

    @wraps(step)
    def counted_step(trainer: Trainer, *args: Any) -> None:
        nonlocal done
        done += 1
        if done <= WARM_UP:
            return step(trainer, *args)
        recorder.counts = Counts()
        with recorder:
            step(trainer, *args)
        found.append(recorder.counts)
        if len(found) == wanted:
            raise Counted
        return None

    @wraps(move)
    def counted_move(batch: Batch, device: torch.device) -> Batch:
        if recorder.entered:  # to the CPU nothing is copied: so the copies are those to a device that holds no numbers
            counts, recorder.counts = recorder.counts, Counts()
            move(batch, torch.device("meta"))
            counts.copies[COPIES] += recorder.counts.operations[Recorder.OTHER]["_to_copy"]
            recorder.counts = counts
        with recorder.phase(COPIES):
            return move(batch, device)

    phases = [
        (Trainer, "_forward", "forward"),
        (torch.Tensor, "backward", "backward"),
        (engine.nn.utils, "clip_grad_norm_", "clip"),
        (GradientGuard, "check_gradients", "guards"),
        (GradientGuard, "check_change", "guards"),
    ]
    begun = register_optimizer_step_pre_hook(lambda *_: recorder.phases.append("optimiser"))
    ended = register_optimizer_step_post_hook(lambda *_: recorder.phases.pop() and None)
    with ExitStack() as stack:
        for hook in (begun, ended):
            stack.callback(hook.remove)
        for owner, name, phase in phases:
            stack.enter_context(mock.patch.object(owner, name, recorder.counted(phase, getattr(owner, name))))
        for name in HOST_METHODS:
            stack.enter_context(mock.patch.object(torch.Tensor, name, recorder.reading(getattr(torch.Tensor, name))))
        stack.enter_context(mock.patch.object(Trainer, "train_step", counted_step))
        stack.enter_context(mock.patch.object(Batch, "to", counted_move))
        # As torch chooses for parameters on a GPU.
        stack.enter_context(mock.patch.object(adam, "_default_to_fused_or_foreach", lambda *_, **__: (False, True)))
        yield found


def count_steps(
    stage: str, compiled: bool = True, steps: int = 1, dropout: float | None = None
) -> tuple[list[Counts], list[list[str]]]:
    """Count steady steps of a stage, all of the same samples; gives the kernels of each compiled graph, too.

    Args:
        stage: name in config/config.yaml.
        compiled: whether layers are compiled.
        steps: how many are counted.
        dropout: of LoRA; None for that of the configuration.
    """
    samples = epoch_batches(questions(SMALL), BATCH, SEED, KEY)[0]
    layers = TINYLLAMA["num_hidden_layers"]
    recorder = Recorder()
    with compiled_graphs(recorder) as graphs, steps_counted(recorder, steps) as found, suppress(Counted):
        run(gpu_trainer(stage, samples, WARM_UP + steps, layers, compiled, dropout))
    return found, graphs


def run(trainer: Trainer) -> None:
    """Train without a word."""
    with redirect_stdout(io.StringIO()):
        trainer.setup()
        for _ in trainer.run():
            pass


def count_graphs(stage: str, steps: int = 16) -> tuple[int, int, int]:
    """Count the compiled graphs of a training with one layer, and the shapes of its batches.

    Args:
        stage: name in config/config.yaml.
        steps: of an epoch, each of other samples.

    Returns:
        Graphs after the first epoch, graphs after the second, and shapes.
    """
    samples = [sample for chosen in epoch_batches(questions(SMALL), BATCH, SEED, KEY)[:steps] for sample in chosen]
    trainer = gpu_trainer(stage, samples, 2, 1, True)
    found = []
    validate, compile_layer = Trainer.validate, torch.nn.Module.compile

    def noted(trainer: Trainer) -> dict:
        metrics = validate(trainer)
        found.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return metrics

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with (
        attention_on_cpu(),
        mock.patch.object(Trainer, "validate", noted),
        mock.patch.object(torch.nn.Module, "compile", partialmethod(compile_layer, backend="aot_eager")),
    ):
        run(trainer)
    torch._dynamo.reset()
    return found[1], found[2], len(trainer.shapes)


def waste() -> float:
    """The share of tokens that is padding, over an epoch of SLAKE at 576 tokens an image."""
    samples, real, all_tokens = questions(SMALL), 0, 0
    trainer = gpu_trainer("2", samples, 1, 1, True, image_tokens=ALL)
    # Nothing is computed, so that nothing need be compiled.
    with redirect_stdout(io.StringIO()), mock.patch.object(engine, "compiled_layers_work", lambda *_: True):
        trainer.setup()
    trainer.pack.keywords["features"] = lambda image_ids: torch.empty(len(image_ids), 0, 0)
    for chosen in epoch_batches(samples, BATCH, SEED, [*KEY, "1"]):
        for own in split_by_image(chosen, trainer.prefix_tokens, STEP_TOKENS):
            blocks = trainer.pack(own).blocks
            real += int((blocks != PADDING).sum())
            all_tokens += blocks.numel()
    return 1 - real / all_tokens


def answering() -> int | None:
    """Kernels of a token of answers; None where they are not counted."""
    with suppress(ModuleNotFoundError):
        from count_answering import count_answering

        return count_answering()["kernels_per_token"]
    return None


def print_phases(counts: dict[str, Counts]) -> None:
    """Kernels, reads and copies by phase."""
    rows = [["phase", *(f"{name}: kernels / host reads / copies" for name in counts)]]
    for phase in PHASES:
        rows.append([phase, *(" / ".join(str(part[phase]) for part in _parts(one)) for one in counts.values())])
    rows.append(["all", *(" / ".join(str(part.total()) for part in _parts(one)) for one in counts.values())])
    print_table(*rows)


def print_names(counted: dict[str, tuple[list[Counts], list[list[str]]]]) -> None:
    """Operations by phase, and the kernels of each compiled graph."""
    for name, (steps, graphs) in counted.items():
        for phase, operations in steps[0].operations.items():
            print(f"{name}, {phase}: {', '.join(f'{count} {one}' for one, count in operations.most_common())}")
        for graph in graphs:
            print(f"{name}, a graph of {len(graph)} kernels: {', '.join(graph)}")


def _parts(counts: Counts) -> tuple:
    return counts.kernels, counts.host_reads, counts.copies


def main() -> None:
    """Print the tables, and the line of JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--eager", action="store_true", help="count as well with nothing compiled")
    parser.add_argument("--names", action="store_true", help="list the operations of each phase, and of one layer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for compiled in [False, True] if arguments.eager else [True]:
        how = "compiled" if compiled else "eager"
        counted = {f"stage {stage}, {how}": count_steps(stage, compiled) for stage in STAGES}
        print_phases({name: steps[0] for name, (steps, _) in counted.items()})
        if arguments.names:
            print_names(counted)
        sums = {f"stage{stage}": steps[0].sums() for stage, (steps, _) in zip(STAGES, counted.values(), strict=True)}
        plain = count_steps("3", compiled, dropout=0.0)[0][0].sums()["kernels"]
        more = sums["stage3"]["kernels"] - plain
        print(f"\nLoRA's dropout, {how}: {more} kernels of stage 3; {plain} without it", flush=True)
        if compiled:
            found |= sums
    for stage in STAGES:
        first, second, shapes = count_graphs(stage)
        found[f"stage{stage}"]["graphs"] = first
        print(f"stage {stage}: {first} graphs for {shapes} shapes after one epoch, {second} after two", flush=True)
    found["answer"] = {"kernels_per_token": answering()}
    found["waste"] = round(waste(), 4)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
