"""Step: greedy answers of one checkpoint to the held-out questions of its fold; one record per question is kept."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from triptych.config.base import Precision, Record
from triptych.config.jobs import View
from triptych.data.questions import asked_questions
from triptych.data.schemas import RECORD_SCHEMA
from triptych.errors import TriptychError, run_step
from triptych.evaluate.generate import ReadFeatures, generate
from triptych.evaluate.predictions import Kept, answer_record
from triptych.features.shards import encoder_hashes
from triptych.features.store import Features, compute_tokens
from triptych.io.manifest import read_json, sha256_file, sha256_json
from triptych.io.parquet import write_table
from triptych.model import checkpoint, vision
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import prompt_tokens, tokenise
from triptych.utils.device import best_device, compute_dtype, mixed_precision
from triptych.utils.seeds import stable_order

GREY = Image.new("RGB", (256, 256), (128, 128, 128))  # what is shown in place of an image by the view `blank`


class Job(Record):
    """What one prediction is told."""

    precision: Precision
    max_new_tokens: int
    batch_size: int
    view: View
    limit: int | None = None  # see `asked_questions`


def other_images(image_ids: Sequence[str]) -> dict[str, str]:
    """Another image for every image: in an order that depends on the names alone, each stands for the one before.

    Raises:
        TriptychError: there is one image only.
    """
    order = sorted(set(image_ids), key=lambda image: stable_order(0, "swapped", image))
    if len(order) < 2:
        raise TriptychError("evaluation.controls: images cannot be swapped where there is only one; drop `swapped`")
    return dict(zip(order, order[1:] + order[:1], strict=True))


def shown(
    view: View, image_ids: Sequence[str], features: Features, encoder: Path, device: torch.device
) -> ReadFeatures:
    """What gives the features that a view shows for images: their own, another's, or those of a grey image.

    Args:
        view: what to show.
        image_ids: the images that are asked about.
        features: of the data set.
        encoder: folder of the vision encoder.
        device: where to encode the grey image.

    Raises:
        TriptychError: the encoder is not the one that made the features; or as `other_images`.
    """
    if view == "swapped":
        other = other_images(image_ids)
        return lambda images: features([other[image] for image in images])
    if view == "blank":
        if encoder_hashes(encoder) != features.encoder:
            raise TriptychError(f"{encoder}: is not the encoder that made the vision features; encode them again")
        model = vision.load(encoder, device)
        grey = compute_tokens(model, model.preprocess([GREY]), features.manifest["dtype"], device).float()
        return lambda images: grey.expand(len(images), -1, -1)
    return features


def main() -> None:
    """Write one checkpoint's answers to the questions of a view."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--job", required=True, help="settings as JSON")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--features", type=Path, required=True, help="folder of the vision features")
    parser.add_argument("--vision-encoder", type=Path, required=True, help="folder of the vision encoder")
    parser.add_argument("--language-model", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    arguments = parser.parse_args()
    job = Job.model_validate_json(arguments.job)

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
    look = shown(job.view, images, features, arguments.vision_encoder, device)
    key = sha256_json([job.model_dump(), sha256_file(arguments.checkpoint), questions, device.type, str(dtype)])
    kept = Kept(arguments.out.with_suffix(".part.jsonl"), key, job.batch_size)
    first = len(kept.records)
    start = time.monotonic()
    for position in range(first, len(samples), job.batch_size):
        batch = slice(position, position + job.batch_size)
        with mixed_precision(job.precision, device):
            answers, logprobs = generate(model, samples[batch], look, prompt, job.max_new_tokens)
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
