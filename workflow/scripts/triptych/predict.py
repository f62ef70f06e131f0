"""Step: greedy answers of one checkpoint to the held-out questions of its fold; one record per question is kept."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import DynamicCache

from triptych import checkpoint
from triptych.features import Features, compute_tokens
from triptych.hardware import Precision, best_device, compute_dtype, mixed_precision
from triptych.model import vision
from triptych.model.batch import PromptTokens, Sample, prompt_tokens, tokenise
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.vlm import VisionLanguageModel
from triptych.samples import RECORD_SCHEMA, View, answer_record, asked_questions, limited
from triptych.settings import Record
from triptych.shards import encoder_hashes
from triptych.storage import (
    TriptychError,
    canonical_json,
    read_json,
    run_step,
    sha256_bytes,
    sha256_file,
    sha256_json,
    stable_order,
    write_table,
    write_text,
)

ReadFeatures = Callable[[Sequence[str]], torch.Tensor]
GREY = Image.new("RGB", (256, 256), (128, 128, 128))  # what is shown in place of a picture by the view `blank`


class Job(Record):
    """What one prediction is told."""

    precision: Precision
    max_new_tokens: int
    batch_size: int
    view: View
    limit: int | None = None  # of the questions that are asked


@torch.inference_mode()
def generate(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    features: ReadFeatures,
    prompt: PromptTokens,
    max_new_tokens: int,
) -> tuple[list[list[int]], list[float]]:
    """Greedy answers (token ids, without the end token) and their log-probabilities, in the order of `samples`.

    The image prefix runs once per image; its keys and values are then shared by all the image's questions. Questions
    are padded on the left, between prefix and question, where the mask hides it. A blind model is shown no image, and
    no features are asked for. The log-probability (natural logarithm) is that of the answer's tokens and, where it is
    not cut off, of its end.
    """
    device = next(model.parameters()).device
    images = list(dict.fromkeys(sample.image_id for sample in samples))
    before = model.embed(torch.tensor(prompt.before_image, dtype=torch.long, device=device))
    prefix = before.expand(len(images), -1, -1)
    if not model.blind:
        prefix = torch.cat([prefix, model.project(features(images).to(device))], dim=1)
    cache = DynamicCache(config=model.decoder.config)
    if prefix.shape[1]:  # a blind model's prompt may begin with the question
        model.decoder(inputs_embeds=prefix, past_key_values=cache, use_cache=True)
        cache.batch_select_indices(torch.tensor([images.index(sample.image_id) for sample in samples], device=device))

    longest = max(len(sample.question) for sample in samples)
    pads = [longest - len(sample.question) for sample in samples]
    tokens = [[prompt.end] * pad + list(sample.question) for pad, sample in zip(pads, samples, strict=True)]
    seen = torch.ones(len(samples), prefix.shape[1] + longest, dtype=torch.long, device=device)
    for row, pad in enumerate(pads):
        seen[row, prefix.shape[1] : prefix.shape[1] + pad] = 0
    inputs = torch.tensor(tokens, device=device)
    answers: list[list[int]] = [[] for _ in samples]
    logprobs = torch.zeros(len(samples), device=device)
    rows = torch.arange(len(samples), device=device)  # the samples that are still being answered
    for _ in range(max_new_tokens):
        positions = (seen.cumsum(1) - 1)[:, -inputs.shape[1] :]
        hidden = model.decoder(
            input_ids=inputs, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits = model.logits(hidden[:, -1]).float()
        following = logits.argmax(-1)
        logprobs[rows] += logits.amax(-1) - logits.logsumexp(-1)
        running = (following != prompt.end).nonzero().flatten()
        if not len(running):
            break
        for row, token in zip(rows[running].tolist(), following[running].tolist(), strict=True):
            answers[row].append(token)
        inputs = following[:, None]
        if len(running) < len(rows):  # what is answered costs nothing from here on
            cache.batch_select_indices(running)
            rows, inputs, seen = rows[running], inputs[running], seen[running]
        seen = torch.cat([seen, torch.ones_like(inputs)], dim=1)
    return answers, logprobs.tolist()


def other_pictures(image_ids: Sequence[str]) -> dict[str, str]:
    """Another picture for every picture: in an order that depends on the names alone, each stands for the one before.

    Raises:
        TriptychError: there is one picture only.
    """
    order = sorted(set(image_ids), key=lambda image: stable_order(0, "swapped", image))
    if len(order) < 2:
        raise TriptychError("evaluation.controls: pictures cannot be swapped where there is only one; drop `swapped`")
    return dict(zip(order, order[1:] + order[:1], strict=True))


def shown(
    view: View, image_ids: Sequence[str], features: Features, encoder: Path, device: torch.device
) -> ReadFeatures:
    """What gives the features that a view shows for pictures: their own, another's, or those of a grey picture.

    Args:
        view: what to show.
        image_ids: the pictures that are asked about.
        features: of the data set.
        encoder: folder of the vision encoder.
        device: where to encode the grey picture.

    Raises:
        TriptychError: the encoder is not the one that made the features; or as `other_pictures`.
    """
    if view == "swapped":
        other = other_pictures(image_ids)
        return lambda images: features([other[image] for image in images])
    if view == "blank":
        if encoder_hashes(encoder) != features.encoder:
            raise TriptychError(f"{encoder}: is not the encoder that made the vision features; encode them again")
        model = vision.load(encoder, device)
        grey = compute_tokens(model, model.preprocess([GREY]), features.manifest["dtype"], device).float()
        return lambda images: grey.expand(len(images), -1, -1)
    return features


def _line(record: dict) -> str:
    """A record as a line of text, with its own hash."""
    text = canonical_json(record)
    return f"{text} {sha256_bytes(text.encode())}"


class Kept:
    """Records of the batches that are answered, in a file beside the result, so that a killed prediction goes on."""

    def __init__(self, path: Path, key: str, batch_size: int):
        """Read what an attempt at the same job left; anything else in the file is dropped."""
        self.path = path
        self.records: list[dict] = []
        # Not `splitlines`, which also splits at some characters within a text.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
        if lines[0] == key:
            for line in lines[1:]:
                text, _, told = line.rpartition(" ")
                if sha256_bytes(text.encode()) != told:  # the line that was being written, or a damaged one
                    break
                self.records.append(json.loads(text))
        # Whole batches only: what an answer is batched with may decide its last bits.
        del self.records[len(self.records) // batch_size * batch_size :]
        write_text(path, "".join(f"{line}\n" for line in (key, *map(_line, self.records))))

    def add(self, records: Sequence[dict]) -> None:
        """Keep the records of a batch."""
        self.records += records
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{_line(record)}\n" for record in records)


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
    questions = limited(asked_questions(arguments.data, manifest["split"], job.view), job.limit, seed=0)
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
