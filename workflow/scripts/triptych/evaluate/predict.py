"""Step: greedy answers of one checkpoint to the held-out questions of its fold; one record per question is kept."""

import argparse
import time
from pathlib import Path

from triptych.config.arms import CONTROLS
from triptych.config.jobs import PredictionJob
from triptych.data.questions import asked_questions
from triptych.data.schemas import RECORD_SCHEMA
from triptych.errors import run_step
from triptych.evaluate.generate import generate
from triptych.evaluate.predictions import PartialPredictions, answer_record
from triptych.features.store import Features
from triptych.io.manifest import read_json, sha256_file, sha256_json
from triptych.io.parquet import write_table
from triptych.model import checkpoint
from triptych.model.architectures import context_tokens
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import prompt_tokens, require_context, tokenise
from triptych.utils.arguments import folder
from triptych.utils.device import best_device, compute_dtype, mixed_precision


def main() -> None:
    """Write one checkpoint's answers to the questions of a view."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--job", required=True, help="settings as JSON")
    parser.add_argument("--data", type=folder, required=True, help="folder of the data set")
    parser.add_argument("--features", type=folder, required=True, help="folder of the vision features")
    parser.add_argument("--vision-encoder", type=folder, required=True, help="folder of the vision encoder")
    parser.add_argument("--language-model", type=folder, required=True, help="folder of the language model")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    arguments = parser.parse_args()
    job = PredictionJob.model_validate_json(arguments.job)

    device = best_device()
    dtype = compute_dtype(job.precision, device)
    features = Features(arguments.features)
    base = checkpoint.Base(arguments.language_model, features.hidden_size, features.encoder)
    manifest = read_json(arguments.checkpoint)
    model = checkpoint.load(base, arguments.checkpoint, dtype, device)
    tokenizer = load_tokenizer(arguments.language_model)
    prompt = prompt_tokens(tokenizer, load_prompt(arguments.language_model))
    questions = asked_questions(arguments.data, manifest["split"], job.view, job.limit)
    samples = tokenise(questions, prompt)
    images = [row["image_id"] for row in questions]
    shown = features
    if job.view in CONTROLS:
        shown = CONTROLS[job.view].load()(images, features, arguments.vision_encoder, device)
    image_tokens = 0 if model.blind else model.image_tokens(shown(images[:1]))
    prefix_tokens = len(prompt.before_image) + image_tokens
    require_context(samples, prefix_tokens, context_tokens(model.decoder.config), job.max_new_tokens)
    key = sha256_json([job.model_dump(), sha256_file(arguments.checkpoint), questions, device.type, str(dtype)])
    kept = PartialPredictions(arguments.out.with_suffix(".part.jsonl"), key, job.batch_size)
    first = len(kept.records)
    start = time.monotonic()
    for position in range(first, len(samples), job.batch_size):
        batch = slice(position, position + job.batch_size)
        with mixed_precision(job.precision, device):
            answers, logprobs = generate(model, samples[batch], shown, prompt, job.max_new_tokens)
        run = (manifest["prefix"], manifest["split"], manifest["seed"])
        texts = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
        kept.add(
            [
                answer_record(row, *run, text, len(answer), logprob, job.view)
                for row, text, answer, logprob in zip(questions[batch], texts, answers, logprobs, strict=True)
            ]
        )
        rate = (len(kept.records) - first) / (time.monotonic() - start)
        print(f"{len(kept.records)}/{len(samples)} questions, {rate:.1f}/s", flush=True)
    write_table(arguments.out, kept.records, RECORD_SCHEMA)
    kept.path.unlink()


if __name__ == "__main__":
    run_step(main)
