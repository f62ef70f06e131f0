"""Step: greedy answers of one checkpoint to the held-out questions of its fold; one record per question is kept."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import DynamicCache

from triptych import checkpoint
from triptych.features import Features
from triptych.hardware import Precision, best_device, compute_dtype, mixed_precision
from triptych.model.batch import PromptTokens, Sample, prompt_tokens, tokenise
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.vlm import VisionLanguageModel
from triptych.samples import RECORD_SCHEMA, answer_record, load_questions
from triptych.settings import Evaluation, Record
from triptych.storage import read_json, run_step, write_table


class Job(Record):
    """What one prediction is told."""

    precision: Precision
    evaluation: Evaluation


@torch.inference_mode()
def generate(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    features: Callable[[Sequence[str]], torch.Tensor],
    prompt: PromptTokens,
    max_new_tokens: int,
) -> list[list[int]]:
    """Greedy answers (token ids, without the end token), in the order of `samples`.

    The image prefix runs once per image; its keys and values are then shared by all the image's questions. Questions
    are padded on the left, between prefix and question, where the mask hides it. A blind model is shown no image, and
    no features are asked for.
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
    running = torch.ones(len(samples), dtype=torch.bool, device=device)
    for _ in range(max_new_tokens):
        positions = (seen.cumsum(1) - 1)[:, -inputs.shape[1] :]
        hidden = model.decoder(
            input_ids=inputs, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        following = model.logits(hidden[:, -1]).argmax(-1)
        running &= following != prompt.end
        if not running.any():
            break
        for row in running.nonzero().flatten().tolist():
            answers[row].append(int(following[row]))
        inputs = following[:, None]
        seen = torch.cat([seen, torch.ones_like(inputs)], dim=1)
    return answers


def main() -> None:
    """Write one checkpoint's answers to the held-out part of its fold."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the checkpoint's manifest.json")
    parser.add_argument("--job", required=True, help="settings as JSON")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--features", type=Path, required=True, help="folder of the vision features")
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
    questions = load_questions(arguments.data, manifest["split"], "test")
    samples = tokenise(questions, prompt)
    records = []
    start = time.monotonic()
    for position in range(0, len(samples), job.evaluation.batch_size):
        chosen = samples[position : position + job.evaluation.batch_size]
        with mixed_precision(job.precision, device):
            answers = generate(model, chosen, features, prompt, job.evaluation.max_new_tokens)
        for row, answer in zip(questions[position:], answers, strict=False):
            text = tokenizer.decode(answer, skip_special_tokens=True).strip()
            run = (manifest["prefix"], manifest["split"], manifest["seed"])
            records.append(answer_record(row, *run, text, len(answer)))
        rate = len(records) / (time.monotonic() - start)
        print(f"{len(records)}/{len(samples)} questions, {rate:.1f}/s", flush=True)
    write_table(arguments.out, records, RECORD_SCHEMA)


if __name__ == "__main__":
    run_step(main)
