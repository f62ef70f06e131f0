"""Step: probes of image tokens before and after projection: which attributes of an image can still be read from them?

The question is that of "Cross-Modal Projection in Multimodal LLMs Doesn't Really Project Visual Attributes to Textual
Space" (arXiv 2402.16832): a classifier learns an attribute of the image from its tokens, mean-pooled by default, and
its macro-F1 on other images tells how much of the attribute the tokens hold. Variables that the paper leaves open are
fixed here: every representation, raw features and a random connector among them, is reduced to one width, is given the
same two probes, and is tested on the held-out images of its fold, which neither the probe nor the connector has seen.
Probes also learn shuffled labels, whose score is chance level.
"""

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier

from triptych.config.evaluation import Probe
from triptych.config.grid import SHARED, shared_split
from triptych.config.jobs import ProbeJob
from triptych.data.questions import named_of_images
from triptych.data.schemas import PROBE_SCHEMA, PROBE_TASKS, PROBES
from triptych.errors import TriptychError, run_step
from triptych.evaluate.representations import probe_inputs, read, text_width
from triptych.features.store import Features, Pixels
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table, write_table
from triptych.model.checkpoint import Base, has_own_encoder
from triptych.utils.arguments import folder
from triptych.utils.seeds import derive_seed


def image_labels(questions: Sequence[dict], images: Sequence[dict], rare: int) -> dict[str, dict[str, list[str]]]:
    """Label images for the probes, by attribute: one modality and one location each, any number of organs.

    Modality and location of an image are those that most of its questions name; values of fewer than `rare` images
    become "other". Organs are those of its boxes that at least `rare` images have and at least `rare` have not. Images
    without a label are left out, and so is an attribute without two values of at least `rare` images.

    Args:
        questions: rows with image_id, modality and location.
        images: rows with id and boxes (JSON, or None).
        rare: number of images.

    Returns:
        Attribute -> image id -> its values.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for attribute in ("modality", "location"):
        value = named_of_images(questions, attribute)
        sizes = Counter(value.values())
        value = {image: name if sizes[name] >= rare else "other" for image, name in value.items()}
        frequent = {name for name, size in Counter(value.values()).items() if size >= rare}
        if len(frequent) > 1:
            found[attribute] = {image: [name] for image, name in value.items() if name in frequent}
    asked = {row["image_id"] for row in questions}
    boxes = {row["id"]: json.loads(row["boxes"]) for row in images if row["boxes"] and row["id"] in asked}
    seen = {image: {name for name, _ in pairs} for image, pairs in boxes.items()}
    sizes = Counter(name for names in seen.values() for name in names)
    organs = {name for name, size in sizes.items() if rare <= size <= len(seen) - rare}
    if organs:
        found["organ"] = {image: sorted(names & organs) for image, names in seen.items()}
    return found


def fit_and_answer(
    kind: Literal["linear", "mlp"],
    train: np.ndarray,
    labels: Sequence[Sequence[str]],
    test: np.ndarray,
    single: bool,
    hidden: int,
    seed: int,
) -> list[list[str]]:
    """Fit one probe and give its answers for `test`; a label that all of `train` have is answered without a fit.

    Args:
        kind: logistic regression (L2, C = 1), or an MLP of one ReLU layer (Adam, 200 epochs).
        train: (N, W) inputs, not standardised.
        labels: (N,) labels of each.
        test: (M, W) inputs, which are standardised by the statistics of `train`.
        single: each input has exactly one label, instead of any number.
        hidden: width of the MLP.
        seed: of the MLP's weights and batches.
    """
    always = set.intersection(*map(set, labels)) if labels else set()
    names = sorted({name for several in labels for name in several} - always)
    if not names or not len(test):
        return [sorted(always) for _ in test]
    mean, spread = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / spread, (test - mean) / spread
    if kind == "mlp":
        model = MLPClassifier((hidden,), random_state=seed)
    else:
        model = LogisticRegression(max_iter=1000)
        model = model if single else OneVsRestClassifier(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed
        if single:
            answers = model.fit(train, [several[0] for several in labels]).predict(test)
            return [[str(name)] for name in answers]
        table = np.array([[name in several for name in names] for several in labels], int)
        table = table[:, 0] if len(names) == 1 else table
        answers = model.fit(train, table).predict(test).reshape(len(test), -1)
    return [sorted(always | {name for name, there in zip(names, row, strict=True) if there}) for row in answers]


def probe_fold(
    inputs: Sequence[np.ndarray],
    places: dict[str, int],
    labels: dict[str, dict[str, list[str]]],
    held_out: set[str],
    settings: Probe,
) -> list[dict]:
    """Fit the probes on one fold, and give their answers for the held-out images.

    Args:
        inputs: (N, W) for each seed of the probes, as `probe_inputs` gives them.
        places: row of every image id in the inputs.
        labels: see `image_labels`.
        held_out: image ids to test on; the others train.
        settings: number of seeds, width of the MLP.

    Returns:
        Rows with probe_seed, attribute, probe, task, image_id, truth and answer.
    """
    rows = []
    for probe_seed, seen in enumerate(inputs):
        seed = derive_seed(probe_seed, "probe")
        for attribute, of_image in labels.items():
            images = sorted(of_image)
            shuffled = np.random.default_rng(seed).permutation(len(images))
            truth = {
                "labels": dict(of_image),
                "shuffled": {image: of_image[images[other]] for image, other in zip(images, shuffled, strict=True)},
            }
            fit = [image for image in images if image not in held_out]
            tested = [image for image in images if image in held_out]
            for task in PROBE_TASKS:
                for kind in PROBES:
                    answers = fit_and_answer(
                        kind,
                        seen[[places[image] for image in fit]],
                        [truth[task][image] for image in fit],
                        seen[[places[image] for image in tested]],
                        attribute != "organ",
                        settings.hidden,
                        seed % 2**32,
                    )
                    rows += [
                        {
                            "probe_seed": probe_seed,
                            "attribute": attribute,
                            "probe": kind,
                            "task": task,
                            "image_id": image,
                            "truth": truth[task][image],
                            "answer": answer,
                        }
                        for image, answer in zip(tested, answers, strict=True)
                    ]
    return rows


def main() -> None:
    """Probe one representation on every fold, and store the answers of the probes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--job", required=True, help="representation and settings as JSON")
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="manifests, one for each split")
    parser.add_argument("--data", type=folder, required=True, help="folder of the data set")
    parser.add_argument("--features", type=folder, required=True, help="folder of the vision features")
    parser.add_argument(
        "--vision-encoder", type=folder, nargs="?", help="folder of the vision encoder, where checkpoints trained it"
    )
    parser.add_argument("--language-model", type=folder, required=True, help="folder of the language model")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    arguments = parser.parse_args()
    job = ProbeJob.model_validate_json(arguments.job)

    folds = read_table(arguments.data / "folds.parquet")
    questions = read_table(arguments.data / "questions.parquet")
    image_of = {row["question_id"]: row["image_id"] for row in questions}
    pool = {image_of[row["question_id"]] for row in folds}
    image_rows = read_table(arguments.data / "images", ["id", "group", "boxes"])
    group = {row["id"]: row["group"] for row in image_rows}
    asked = [row for row in questions if row["image_id"] in pool]
    labels = image_labels(asked, image_rows, job.probe.rare)
    if not labels:
        raise TriptychError(
            f"{arguments.data}: no attribute has two values of at least {job.probe.rare} images each, so there is "
            "nothing to probe; set evaluation.probe: null"
        )

    features = Features(arguments.features)
    base = Base(arguments.language_model, *features.identity, arguments.vision_encoder)
    if any(has_own_encoder(read_json(path)) for path in arguments.checkpoints):
        features = Pixels(features, arguments.data, arguments.vision_encoder)
    width = min(features.hidden_size, text_width(base))  # of the narrowest representation
    images = sorted(pool)
    places = {image: row for row, image in enumerate(images)}
    inputs = {
        split: probe_inputs(found, job.probe, width)
        for split, found in read(job, arguments.checkpoints, base, features, images, width)
    }
    records = []
    for split in sorted({row["fold"] for row in folds}):
        held_out = {image_of[row["question_id"]] for row in folds if (row["fold"], row["part"]) == (split, "test")}
        seen = next(inputs[name] for name in (split, shared_split(split), SHARED) if name in inputs)
        run = {"representation": job.representation, "split": split, "seed": job.seed}
        found = probe_fold(seen, places, labels, held_out, job.probe)
        records += [{**run, **row, "group": group[row["image_id"]]} for row in found]
        print(f"{split}: {len(held_out)} of {len(images)} images held out, {', '.join(labels)}", flush=True)
    write_table(arguments.out, records, PROBE_SCHEMA)


if __name__ == "__main__":
    run_step(main)
