"""Step: occlusion for one checkpoint: what the gold answers to held-out questions lose with each square of an image."""

import argparse
import json
from itertools import groupby
from pathlib import Path

import numpy as np

from triptych.config.jobs import OcclusionJob
from triptych.data.boxed import boxed_questions
from triptych.data.schemas import OCCLUSION_SCHEMA
from triptych.errors import run_step
from triptych.evaluate.occlusion import answer_drops, pointing_hits, shares_inside
from triptych.features.occluded import view_names, views
from triptych.features.store import Features, Pixels
from triptych.io.manifest import read_json
from triptych.io.parquet import write_table
from triptych.model import checkpoint
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import prompt_tokens, tokenise
from triptych.utils.arguments import folder
from triptych.utils.device import best_device, compute_dtype


def main() -> None:
    """Write what the gold answers of one checkpoint's held-out questions lose with each square of their images."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--job", required=True, help="settings as JSON")
    parser.add_argument("--data", type=folder, required=True, help="folder of the data set with folds")
    parser.add_argument("--occluded", type=folder, required=True, help="folder of the occluded images' features")
    parser.add_argument(
        "--vision-encoder", type=folder, nargs="?", help="folder of the vision encoder, where the checkpoint trained it"
    )
    parser.add_argument("--language-model", type=folder, required=True, help="folder of the language model")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    arguments = parser.parse_args()
    job = OcclusionJob.model_validate_json(arguments.job)
    grid, device = job.occlusion.grid, best_device()
    features, manifest = Features(arguments.occluded), read_json(arguments.checkpoint)
    base = checkpoint.Base(arguments.language_model, *features.identity, arguments.vision_encoder)
    model = checkpoint.load(base, arguments.checkpoint, compute_dtype(job.precision, device), device)
    pixels = Pixels(features, arguments.data, arguments.vision_encoder) if model.vision else None
    prompt = prompt_tokens(load_tokenizer(arguments.language_model), load_prompt(arguments.language_model))
    rows = boxed_questions(arguments.data, job.occlusion.images, job.occlusion.questions)
    rows = [row for row in rows if row["fold"] == manifest["split"]]
    run = {"arm": manifest["prefix"], "split": manifest["split"], "seed": manifest["seed"]}
    images = [(image, list(asked)) for image, asked in groupby(rows, key=lambda row: row["image_id"])]
    records = []
    for number, (image, asked) in enumerate(images, 1):
        if pixels:  # the features are the frozen encoder's
            [whole] = pixels.images([image])
            tokens = pixels.preprocess(views(whole, grid))
        else:
            tokens = features(view_names(image, grid))
        samples = tokenise(asked, prompt)
        logprobs, drops = answer_drops(model, samples, tokens.__getitem__, len(tokens), prompt, job.precision)
        for row, logprob, lost in zip(asked, logprobs, drops, strict=True):
            if np.isnan(logprob):
                print(f"question {row['question_id']} does not fit into the model's context, and is left out")
                continue
            place = (row["boxes"], row["width"], row["height"], grid)
            names = ("question_id", "image_id", "group", "question")
            about = {name: row[name] for name in names} | {"gold": row["answer"], "boxes": json.dumps(row["boxes"])}
            found = {"inside": shares_inside(*place).tolist(), "hits": pointing_hits(*place).tolist()}
            records.append({**run, **about, "logprob": logprob, "drops": lost.tolist(), **found})
        print(f"{number}/{len(images)} images, {len(tokens)} views each", flush=True)
    write_table(arguments.out, records, OCCLUSION_SCHEMA)


if __name__ == "__main__":
    run_step(main)
