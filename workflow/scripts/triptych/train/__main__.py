"""Step: train one stage of one schedule, on one split, with one seed."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import get_args

from triptych.config.base import Switch
from triptych.config.jobs import TrainingJob
from triptych.config.stages import Training
from triptych.data.questions import limited, load_questions
from triptych.errors import run_step
from triptych.features.store import Features
from triptych.io.manifest import read_json, sha256_file
from triptych.model import checkpoint
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import prompt_tokens, tokenise
from triptych.train.autosave import EXIT_STATUS, Keeper, Paused
from triptych.train.distributed import Elsewhere, joined, only_the_first_prints, rank, together, world_size
from triptych.train.parameters import describe
from triptych.train.trainer import train
from triptych.train.validation import chosen_epoch
from triptych.utils.arguments import folder
from triptych.utils.device import best_device, compute_dtype


def main() -> None:
    """Train one stage and write its checkpoint; exit status 75: saved before it was done, to be run again."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--job", required=True, help="the training's settings as JSON")
    parser.add_argument("--parent", type=Path, nargs="?", help="the parent's manifest.json; none for a fresh connector")
    parser.add_argument("--data", type=folder, required=True, help="folder of the data set")
    parser.add_argument("--features", type=folder, required=True, help="folder of the vision features")
    parser.add_argument("--language-model", type=folder, required=True, help="folder of the language model")
    parser.add_argument("--out", type=folder, required=True, help="folder of the checkpoint")
    # Not part of the job: they change nothing in what is trained.
    parser.add_argument(
        "--save-minutes", type=float, default=Training().save_minutes, help="minutes between two saved states"
    )
    parser.add_argument("--time-limit-minutes", type=float, help="save and stop before so many minutes are over")
    how = {"choices": get_args(Switch)}
    parser.add_argument(
        "--gradient-checkpointing",
        default=Training().gradient_checkpointing,
        help="compute layers again in the backward pass",
        **how,
    )
    parser.add_argument("--compile", default=Training().compile, help="compile the language model's layers", **how)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    limit = arguments.time_limit_minutes
    with joined(), only_the_first_prints():
        try:
            run(arguments, limit and started + 60 * limit)
        except Paused as pause:
            print(f"{pause} (exit status {EXIT_STATUS})", flush=True)
            sys.exit(EXIT_STATUS)
        except Elsewhere:
            sys.exit(1)


def run(arguments: argparse.Namespace, deadline: float | None) -> None:
    """What `main` does, as one of the processes that train together, by `deadline` as told by `time.monotonic()`."""
    job = TrainingJob.model_validate_json(arguments.job)
    options = {"gradient_checkpointing": arguments.gradient_checkpointing, "compile": arguments.compile}
    settings = job.training.model_copy(update=options)
    with together():
        device = best_device()
        dtype = compute_dtype(job.training.precision, device)
        features = Features(arguments.features)
        base = checkpoint.Base(arguments.language_model, features.hidden_size, features.encoder)
        model = checkpoint.build(
            base, arguments.parent, job.connector, job.lora, job.seed, job.split, dtype, device, job.stage.init
        )
        prompt = prompt_tokens(load_tokenizer(arguments.language_model), load_prompt(arguments.language_model))
        limits = {"train": job.stage.max_samples, "validation": job.training.validation_limit}
        training, validation = (
            tokenise(limited(load_questions(arguments.data, job.split, part), limit, job.seed), prompt)
            for part, limit in limits.items()
        )
    several = f", {world_size()} processes" if world_size() > 1 else ""
    print(
        f"{job.prefix} {job.split} seed {job.seed}: {len(training)} training and {len(validation)} validation samples; "
        f"{device.type}, {str(dtype).removeprefix('torch.')}{several}; parent: {arguments.parent or 'none'}",
        flush=True,
    )
    parent = read_json(arguments.parent) if arguments.parent else None
    manifest = {
        "prefix": job.prefix,
        "split": job.split,
        "seed": job.seed,
        "stages": [*(parent["stages"] if parent else []), {job.stage_name: job.stage.model_dump()}],
        "connector": job.connector.model_dump(),
        "lora": job.lora.model_dump() if job.lora else parent and parent["lora"],
        "blind": job.stage.blind,
        "parent": sha256_file(arguments.parent) if arguments.parent else None,
        "data": read_json(arguments.data / "manifest.json")["files"],
        "features": features.manifest["files"],
        **base.identity,
        "precision": str(dtype).removeprefix("torch."),
        "samples": {"train": len(training), "validation": len(validation)},
    }
    facts = {
        "settings": json.loads(arguments.job),
        **{name: manifest[name] for name in ("parent", "data", *base.identity, "precision")},
        "features": features.manifest,
        "device": device.type,
        "questions": [[sample.question_id for sample in part] for part in (training, validation)],
    }
    keeper = Keeper(arguments.out / "last", facts, arguments.save_minutes, deadline, manifest)
    if keeper.put_back():
        print("finished before, and nothing that it depends on has changed: its checkpoint is put back", flush=True)
        return
    keeper.listen()
    key = [job.split, job.stage_name]
    epochs = train(model, training, validation, features, prompt, job.stage, settings, job.seed, key, keeper)
    rows = list(epochs)
    if rank() > 0:
        return
    epoch = chosen_epoch(rows, job.stage.select)
    print(f"the checkpoint holds epoch {epoch} of {rows[-1]['epoch']}", flush=True)
    manifest |= {"parameters": describe(model.named_parameters()), "epoch": epoch, "metrics": rows[epoch]}
    if keeper.codes[:-1]:
        manifest["earlier_code"] = keeper.codes[:-1]  # versions of Triptych that made the saved states
    checkpoint.save(model, arguments.out, manifest, "".join(json.dumps(row) + "\n" for row in rows))
    keeper.finish()


if __name__ == "__main__":
    run_step(main)
