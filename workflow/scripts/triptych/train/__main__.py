"""Step: train one stage of one schedule, on one split, with one seed."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from triptych.config.jobs import TrainingJob
from triptych.config.runtime import Runtime
from triptych.data.questions import limited, load_questions
from triptych.errors import run_step
from triptych.features.store import Features, Pixels
from triptych.io.manifest import read_json, sha256_file
from triptych.model import checkpoint
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import PromptTokens, Sample, prompt_tokens, tokenise
from triptych.model.vlm import VisionLanguageModel
from triptych.train.autosave import EXIT_STATUS, Autosaver, Interrupted
from triptych.train.distributed import (
    OtherProcessFailed,
    fail_together,
    print_on_first_rank,
    process_group,
    rank,
    world_size,
)
from triptych.train.parameters import count_parameters
from triptych.train.trainer import Trainer
from triptych.train.validation import chosen_epoch
from triptych.utils.arguments import folder
from triptych.utils.device import best_device, compute_dtype, device_name


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--job", required=True, help="the training's settings as JSON")
    parser.add_argument("--parent", type=Path, nargs="?", help="the parent's manifest.json; none for a new connector")
    parser.add_argument("--data", type=folder, required=True, help="folder of the data set")
    parser.add_argument("--features", type=folder, required=True, help="folder of the vision features")
    parser.add_argument(
        "--vision-encoder", type=folder, nargs="?", help="folder of the vision encoder, where it trains or has trained"
    )
    parser.add_argument("--language-model", type=folder, required=True, help="folder of the language model")
    parser.add_argument("--out", type=folder, required=True, help="folder of the checkpoint")
    # Not part of the job, because it does not change what is trained.
    parser.add_argument(
        "--runtime", type=Runtime.model_validate_json, default=Runtime(), help="settings `runtime` as JSON"
    )
    return parser.parse_args()


def main() -> None:
    """Train one stage and write its checkpoint; exit status 75: interrupted and saved, to be run again."""
    started = time.monotonic()
    arguments = parse_arguments()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    limit = arguments.runtime.time_limit_minutes
    with process_group(), print_on_first_rank():
        try:
            run(arguments, limit and started + 60 * limit)
        except Interrupted as interruption:
            print(f"{interruption} (exit status {EXIT_STATUS})", flush=True)
            sys.exit(EXIT_STATUS)
        except OtherProcessFailed:
            sys.exit(1)


@dataclass(frozen=True)
class Inputs:
    """The loaded inputs of a training.

    Attributes:
        features: vision features by image id, or pixels where the model has a vision encoder of its own.
        base: the base models.
        model: at the start of the stage, on its device.
        prompt: the fixed text.
        training: samples to learn from.
        validation: samples to validate on.
        device: where the model runs.
        dtype: of the frozen weights and of matrix products.
    """

    features: Features | Pixels
    base: checkpoint.Base
    model: VisionLanguageModel
    prompt: PromptTokens
    training: list[Sample]
    validation: list[Sample]
    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """Name of the dtype."""
        return str(self.dtype).removeprefix("torch.")


def run(arguments: argparse.Namespace, deadline: float | None) -> None:
    """Train the stage, as one of the processes that train together.

    Args:
        arguments: of the command line.
        deadline: when the training must have stopped, on the clock of `time.monotonic()`; None for no limit.
    """
    job = TrainingJob.model_validate_json(arguments.job)
    with fail_together():
        inputs = load_inputs(arguments, job)
    print_start(job, inputs, arguments.parent)
    manifest = start_manifest(arguments, job, inputs)
    dependencies = list_dependencies(arguments, inputs, manifest)
    autosaver = Autosaver(arguments.out / "last", dependencies, arguments.runtime.save_minutes, deadline, manifest)
    if autosaver.restore_finished():
        print("finished before, and nothing that it depends on has changed: its checkpoint is restored", flush=True)
        return
    autosaver.handle_signals()
    samples = inputs.training, inputs.validation, inputs.features, inputs.prompt
    key = [job.split, job.stage_name]
    precision, runtime = job.training.precision, arguments.runtime
    trainer = Trainer(inputs.model, *samples, job.stage, precision, job.seed, key, autosaver, runtime)
    trainer.setup()
    rows = list(trainer.run())
    if rank() == 0:
        write_checkpoint(arguments, job, inputs.model, rows, manifest, autosaver)


def load_inputs(arguments: argparse.Namespace, job: TrainingJob) -> Inputs:
    """Load the features, the model at the start of the stage, and the samples.

    Raises:
        TriptychError: an input is missing or damaged, or does not belong to this training.
    """
    device = best_device()
    dtype = compute_dtype(job.training.precision, device)
    features = Features(arguments.features)
    base = checkpoint.Base(arguments.language_model, *features.identity, arguments.vision_encoder)
    loaded = torch.float32 if "language_model" in job.stage.train else dtype
    start = job.connector, job.lora, job.seed, job.split, loaded, device, job.stage.init
    model = checkpoint.build(base, arguments.parent, *start, "vision_encoder" in job.stage.train)
    if model.vision:
        features = Pixels(features, arguments.data, arguments.vision_encoder)
    prompt = prompt_tokens(load_tokenizer(arguments.language_model), load_prompt(arguments.language_model))
    rows = {part: load_questions(arguments.data, job.split, part) for part in ("train", "validation")}
    limits = {"train": job.stage.most_samples(len(rows["train"])), "validation": job.training.validation_limit}
    training, validation = (tokenise(limited(rows[part], limits[part], job.seed), prompt) for part in rows)
    return Inputs(features, base, model, prompt, training, validation, device, dtype)


def print_start(job: TrainingJob, inputs: Inputs, parent: Path | None) -> None:
    """Print the first line of the log."""
    several = f", {world_size()} processes" if world_size() > 1 else ""
    print(
        f"{job.prefix} {job.split} seed {job.seed}: {len(inputs.training)} training and {len(inputs.validation)} "
        f"validation samples; {inputs.device.type}, {inputs.precision}{several}; parent: {parent or 'none'}",
        flush=True,
    )


def start_manifest(arguments: argparse.Namespace, job: TrainingJob, inputs: Inputs) -> dict:
    """Build the checkpoint's manifest, as far as it is known before the training."""
    parent = read_json(arguments.parent) if arguments.parent else None
    # By alias, under the names that settings had in version 0.1, so that manifests keep their keys.
    stage = job.stage.model_dump(by_alias=True)
    return {
        "prefix": job.prefix,
        "split": job.split,
        "seed": job.seed,
        "stages": [*(parent["stages"] if parent else []), {job.stage_name: stage}],
        "connector": job.connector.model_dump(),
        "lora": job.lora.model_dump() if job.lora else parent and parent["lora"],
        "blind": job.stage.blind,
        "parent": sha256_file(arguments.parent) if arguments.parent else None,
        "data": read_json(arguments.data / "manifest.json")["files"],
        "features": inputs.features.manifest["files"],
        **inputs.base.identity,
        "precision": inputs.precision,
        "device": device_name(inputs.device),
        "samples": {"train": len(inputs.training), "validation": len(inputs.validation)},
    }


def list_dependencies(arguments: argparse.Namespace, inputs: Inputs, manifest: dict) -> dict:
    """List all that the training's result depends on, by name; only a state with the same dependencies is resumed."""
    return {
        "settings": json.loads(arguments.job),
        **{name: manifest[name] for name in ("parent", "data", *inputs.base.identity, "precision")},
        "features": inputs.features.manifest,
        "device": inputs.device.type,
        "questions": [[sample.question_id for sample in part] for part in (inputs.training, inputs.validation)],
    }


def write_checkpoint(
    arguments: argparse.Namespace,
    job: TrainingJob,
    model: VisionLanguageModel,
    rows: Sequence[dict],
    manifest: dict,
    autosaver: Autosaver,
) -> None:
    """Write the finished checkpoint, and keep it in place of the saved states.

    Args:
        arguments: of the command line.
        job: the training's settings.
        model: with the weights of the epoch that the stage selects.
        rows: metrics of all epochs.
        manifest: from `start_manifest`.
        autosaver: of the training.
    """
    epoch = chosen_epoch(rows, job.stage.select)
    print(f"the checkpoint holds epoch {epoch} of {rows[-1]['epoch']}", flush=True)
    manifest |= {"parameters": count_parameters(model.named_parameters()), "epoch": epoch, "metrics": rows[epoch]}
    if autosaver.codes[:-1]:
        manifest["earlier_code"] = autosaver.codes[:-1]  # versions of Triptych that made the saved states
    metrics = "".join(json.dumps(row) + "\n" for row in rows)
    checkpoint.save(model, arguments.out, manifest, metrics, arguments.parent)
    autosaver.keep_finished()


if __name__ == "__main__":
    run_step(main)
