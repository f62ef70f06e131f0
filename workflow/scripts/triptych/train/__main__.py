"""Step: train one stage of one schedule, on one split, with one seed."""

import argparse
import json
import os
from pathlib import Path

from triptych import checkpoint
from triptych.encode import Features
from triptych.hardware import best_device, compute_dtype
from triptych.model.batch import prompt_tokens, tokenise
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.samples import load_questions
from triptych.settings import Connector, Lora, Record, Stage, Training
from triptych.storage import read_json, run_step, sha256_file, stable_order
from triptych.train.loop import describe, train


class Job(Record):
    """What one training is told; the rest it reads from its inputs."""

    prefix: str
    split: str
    seed: int
    stage_name: str
    stage: Stage
    connector: Connector
    lora: Lora | None
    training: Training


def limited(rows: list[dict], limit: int | None, seed: int) -> list[dict]:
    """At most `limit` rows, all of some images (the last one's may be cut), chosen by a seeded hash; order is kept."""
    if limit is None or len(rows) <= limit:
        return rows
    chosen = sorted(rows, key=lambda row: (stable_order(seed, "limit", row["image_id"]), row["question_id"]))[:limit]
    kept = {row["question_id"] for row in chosen}
    return [row for row in rows if row["question_id"] in kept]


def main() -> None:
    """Train one stage and write its checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--job", required=True, help="the training's settings as JSON")
    parser.add_argument("--parent", type=Path, nargs="?", help="the parent's manifest.json; none for a fresh connector")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--features", type=Path, required=True, help="folder of the vision features")
    parser.add_argument("--language-model", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    arguments = parser.parse_args()
    job = Job.model_validate_json(arguments.job)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    device = best_device()
    dtype = compute_dtype(job.training.precision, device)
    features = Features(arguments.features)
    base = checkpoint.Base(arguments.language_model, features.hidden_size, features.encoder)
    model = checkpoint.build(base, arguments.parent, job.connector, job.lora, job.seed, job.split, dtype, device)
    prompt = prompt_tokens(load_tokenizer(arguments.language_model), load_prompt(arguments.language_model))
    limits = {"train": job.stage.samples, "validation": job.training.validation_limit}
    training, validation = (
        tokenise(limited(load_questions(arguments.data, job.split, part), limit, job.seed), prompt)
        for part, limit in limits.items()
    )
    print(
        f"{job.prefix} {job.split} seed {job.seed}: {len(training)} training and {len(validation)} validation samples; "
        f"{device.type}, {str(dtype).removeprefix('torch.')}; parent: {arguments.parent or 'none'}",
        flush=True,
    )
    key = [job.split, job.stage_name]
    rows = list(train(model, training, validation, features, prompt, job.stage, job.training, job.seed, key))

    parent = read_json(arguments.parent) if arguments.parent else None
    manifest = {
        "prefix": job.prefix,
        "split": job.split,
        "seed": job.seed,
        "stages": [*(parent["stages"] if parent else []), {job.stage_name: job.stage.model_dump()}],
        "connector": job.connector.model_dump(),
        "lora": job.lora.model_dump() if job.lora else parent and parent["lora"],
        "parent": sha256_file(arguments.parent) if arguments.parent else None,
        "data": read_json(arguments.data / "manifest.json")["files"],
        "features": features.manifest["files"],
        **base.hashes,
        "precision": str(dtype).removeprefix("torch."),
        "parameters": describe(model),
        "samples": {"train": len(training), "validation": len(validation)},
        "metrics": rows[-1],
    }
    checkpoint.save(model, arguments.out, manifest, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    run_step(main)
