"""What a training or the answers to a view cost in samples and FLOPs, from sizes of models and data.

What is not known before data or models are there is taken from the configuration, and said to be so. Every Snakemake
reads this, so it imports little.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from triptych.commands.encoders import EncoderSize, encoder_size
from triptych.config import paths
from triptych.config.arms import PARTS
from triptych.config.base import Part
from triptych.config.datasets import Captions
from triptych.config.grid import Checkpoint
from triptych.config.models import LlavaPart
from triptych.config.stages import OPTIMIZER_BYTES, Optimizer
from triptych.config.study import Study
from triptych.errors import TriptychError
from triptych.io.manifest import read_json

# Of a training, in tokens: what stands in front of a question's image or behind it, and SLAKE's questions an image.
TEXT_TOKENS = {"questions": 14, "captions": 40}
QUESTIONS_PER_IMAGE = 11
UNKNOWN_SIZE = 1000  # images or questions of a data set of which nothing is said
PREDICTION = 0.65  # time of an answer, in samples of training: 17 against 11 a second, SmolLM2-135M on one core
GOLD = 0.6  # time of a gold answer's log-probability, in answers: 28 against 17 a second
SIZES = {"b": 1e9, "m": 1e6}
# Bytes of each weight of a model that trains; of a language model's, further ones.
WEIGHT = GRADIENT = 4
FOUR_BITS = 0.53  # half a byte, and a scale in fp32 of each 64 weights, itself in 8 bits
COPY = 2 + 2  # the copy in bf16 that layers compute with, and its gradient


@dataclass(frozen=True)
class Cost:
    """Samples and FLOPs of one training or prediction."""

    samples: float
    flops: float


@dataclass(frozen=True)
class Model:
    """What the estimates need of both models.

    Attributes:
        weights: parameters of the language model; of its layers alone, where it is prepared.
        embeddings: those of its embeddings and output layer, where `weights` leaves them out.
        hidden: size of its hidden states.
        image_tokens: of an image, before a connector pools them.
        width: of a vision feature.
        known: they are prepared; otherwise sizes come from the configuration's words.
    """

    weights: float
    embeddings: float
    hidden: int
    image_tokens: int
    width: int
    known: bool


def model_sizes(study: Study, prefix: str) -> Model:
    """Sizes of a prefix's models: of those that are prepared, else as their names say (TinyLlama-1.1B, patch16-384).

    What the name of a LLaVA does not say is as in LLaVA-1.5 7B, whose tower is CLIP's ViT-L/14 for 336 pixels.
    """
    behind = study.grid.prefixes[prefix]
    language, encoder = behind.settings.models.language_model, behind.settings.models.vision_encoder
    try:
        config = read_json(study.path(paths.MODEL_CONFIG, model=behind.language_model))
        folder = study.grid.features(study.settings.folds.dataset, prefix)
        features = read_json(study.path(paths.FEATURES, dataset=folder, tag=""))
        hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        keys = hidden * config["num_key_value_heads"] / config["num_attention_heads"]
        weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner)
        embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
        return Model(weights, embeddings, hidden, features["shape"][0], features["shape"][1], True)
    except (TriptychError, KeyError):
        pass
    llava = isinstance(language, LlavaPart)
    name = getattr(language, "repo", "") or ("LLaVA-7B" if llava else "SmolLM2-135M")
    size = re.search(r"(\d+(?:\.\d+)?)([BM])\b", name, re.IGNORECASE)
    weights = float(size[1]) * SIZES[size[2].lower()] if size else 1e9
    if llava:
        return Model(weights, 0, 4096, 576, 1024, False)
    patch = re.search(r"patch(\d+)-(\d+)", getattr(encoder, "repo", "") or "")
    tokens = (int(patch[2]) // int(patch[1])) ** 2 if patch else 49
    return Model(weights, 0, 2048 if weights > 5e8 else 576, tokens, 768, False)


def questions(study: Study, dataset: str, parts: Sequence[str] = ()) -> tuple[int, int]:
    """Samples of a data set and their images: counted, else as the configuration says.

    Of the parts given; by default of those that are trained on, or of all where it is asked for transfer alone.
    """
    described = study.datasets[dataset]
    parts = parts or PARTS[: 3 if dataset in study.settings.evaluation.datasets else 2]
    try:
        counts = read_json(study.path(paths.DATA, dataset=dataset))["counts"]
        return tuple(sum(counts[kind].get(part, 0) for part in parts) for kind in ("questions", "images"))
    except TriptychError:
        pass
    if isinstance(described, Captions):
        number = described.size if described.size < inf else UNKNOWN_SIZE
        return number, number
    expected = getattr(described, "expected", None) or {parts[0]: UNKNOWN_SIZE}
    number = sum(expected.get(part, 0) for part in parts)
    return number, max(1, number // QUESTIONS_PER_IMAGE)


def shown_tokens(study: Study, model: Model, prefix: str) -> float:
    """Image tokens of an image that the language model sees, which a connector may have averaged."""
    return model.image_tokens / (study.grid.settings_of(prefix).connector.pool or 1) ** 2


def training_cost(study: Study, cell: Checkpoint) -> Cost:
    """Samples that a training sees, and the FLOPs of these.

    2 x 2 x weights for each token, forward and for the gradient of the activations: frozen weights need no gradient,
    and those of a language model that trains as much again. An image is computed once for all its questions in a step.
    Adapters, connector and attention are left out. Answers to the validation part, after each epoch and before the
    first, count as PREDICTION. An encoder that trains, or has trained, encodes images in the training.
    """
    stage, model = study.grid.stage_of(cell.prefix), model_sizes(study, cell.prefix)
    number, images = questions(study, stage.data)
    described = study.datasets[stage.data]
    if isinstance(described, Captions):
        text, shared, aside = TEXT_TOKENS["captions"], 1.0, described.validation_fraction
    else:
        most = min(stage.batch_size, stage.questions_per_image or stage.batch_size)
        text, shared = TEXT_TOKENS["questions"], min(number / images, most)
        number *= 1 - 1 / study.settings.folds.number if study.settings.folds.number > 1 else 0.8
        aside = study.settings.folds.validation_fraction
    epochs, part = stage.epochs or 0, (1 - aside) * number
    asked = min(aside * number, study.settings.training.validation_limit or number) * (epochs + 1)
    learnt, asked = min(stage.fraction * part, stage.max_samples or part) * epochs, PREDICTION * asked
    passes = 3 if "language_model" in stage.train else 2
    shared = max(1.0, shared)
    image = 0 if stage.blind else shown_tokens(study, model, cell.prefix) / shared
    flops = (learnt * passes + asked * 2) * 2 * model.weights * (image + text)
    if encoder := own_encoder(study, cell.prefix):
        # Weights that train cost as much again as the gradient of what they read; adapters cost that gradient alone.
        backward = (2 if "vision_encoder" in stage.train else 1) * trained_share(study, cell.prefix, encoder)
        flops += encoder.flops * (learnt * (1 + backward) + asked) / shared
    return Cost(learnt + asked, flops)


def trained_share(study: Study, prefix: str, encoder: EncoderSize) -> float:
    """Share of an encoder that gradients pass in the last stage of a prefix: all of it where it has adapters."""
    stage, adapted = study.grid.stage_of(prefix), study.grid.settings_of(prefix).lora.vision_target_modules
    if "vision_encoder" in stage.train:
        return encoder.share(stage.vision.blocks)
    return 1.0 if adapted and "lora" in stage.train else 0.0


def own_encoder(study: Study, prefix: str) -> EncoderSize | None:
    """Sizes of the encoder that a prefix has trained, by which it encodes images itself; None where it has not."""
    if study.grid.stage_of(prefix).blind or not study.grid.has_trained(prefix, "vision_encoder"):
        return None
    return encoder_size(study, prefix, model_sizes(study, prefix).image_tokens)


@dataclass(frozen=True)
class Tuned:
    """A model whose own weights a stage trains: their number, and of how many that is."""

    part: Part
    weights: float
    trained: float


def tuned(study: Study, prefix: str) -> list[Tuned]:
    """The models whose own weights the last stage of a prefix trains."""
    stage, found = study.grid.stage_of(prefix), []
    if "language_model" in stage.train:
        model = model_sizes(study, prefix)
        weights = model.weights + model.embeddings
        found.append(Tuned("language_model", weights, weights))
    if "vision_encoder" in stage.train:
        encoder = own_encoder(study, prefix)
        found.append(Tuned("vision_encoder", encoder.weights, encoder.weights * encoder.share(stage.vision.blocks)))
    return found


def quantised(study: Study) -> bool:
    """Tell whether any language model of a study is kept in 4 bits."""
    return any(getattr(model, "quantise", None) for model in study.grid.models.values())


def tuned_in_words(study: Study, prefix: str) -> str:
    """Name these models: the language model's and the vision encoder's."""
    return " and ".join(f"the {one.part.replace('_', ' ')}'s" for one in tuned(study, prefix))


def training_gb(study: Study, prefix: str, optimizer: Optimizer | None = None) -> float:
    """GB of weights, gradients and optimiser of the models that a prefix trains, on the device that trains them.

    Activations, connector and frozen models are left out. With `optimizer`, as if the stage had that one.
    """
    copies = 0 if study.grid.settings_of(prefix).training.precision == "fp32" else COPY
    state = OPTIMIZER_BYTES[optimizer or study.grid.stage_of(prefix).optimizer]
    each = {"language_model": GRADIENT + state + copies, "vision_encoder": GRADIENT + state}
    return sum(one.weights * WEIGHT + one.trained * each[one.part] for one in tuned(study, prefix)) / 1e9


def kept_gb(study: Study, prefix: str) -> float:
    """GB at most of what an encoder that trains keeps of the images of one pass for the backward pass."""
    encoder = own_encoder(study, prefix)
    if encoder is None:
        return 0.0
    return study.grid.stage_of(prefix).batch_size * encoder.kept * trained_share(study, prefix, encoder) / 1e9


def frozen_gb(study: Study, prefix: str) -> float:
    """GB of the language model of a prefix that leaves it frozen, on its device."""
    settings, model = study.grid.settings_of(prefix), model_sizes(study, prefix)
    width = 4 if settings.training.precision == "fp32" else 2
    layers = FOUR_BITS if getattr(settings.models.language_model, "quantise", None) else width
    return (layers * model.weights + width * model.embeddings) / 1e9


def saved_gb(study: Study, prefix: str) -> float:
    """GB of one saved state of the models that a prefix trains: weights, optimiser, weights of the best epoch.

    As much is in the machine's memory while it is written.
    """
    stage = study.grid.stage_of(prefix)
    best = WEIGHT if stage.select == "best" else 0
    trained = sum(one.trained for one in tuned(study, prefix))
    return trained * (WEIGHT + OPTIMIZER_BYTES[stage.optimizer] + best) / 1e9


def prediction_cost(study: Study, prefix: str, transfer: str = "") -> Cost:
    """The same of the answers to one view of a fold's held-out part, or to the asked part of another data set."""
    model, evaluation = model_sizes(study, prefix), study.settings.evaluation
    part = [evaluation.datasets[transfer]] if transfer else ()
    number, images = questions(study, transfer or study.settings.folds.dataset, part)
    held_out = min(number, evaluation.max_questions or number)
    held_out /= 1 if transfer else max(2, study.settings.folds.number)
    shown = images / max(1, number)
    tokens = shown_tokens(study, model, prefix) * shown + TEXT_TOKENS["questions"]
    encoder = own_encoder(study, prefix)
    encoding = encoder.flops * held_out * shown if encoder else 0
    return Cost(held_out, held_out * PREDICTION * 2 * 2 * model.weights * tokens + encoding)


def occlusion_cost(study: Study, prefix: str) -> Cost:
    """The same of occluded images: views of the images that a fold holds out, and all questions about each view."""
    model, settings = model_sizes(study, prefix), study.settings.evaluation.occlusion
    views = occluded_views(study) / max(1, study.settings.folds.number)
    tokens = shown_tokens(study, model, prefix) + settings.questions * TEXT_TOKENS["questions"]
    encoder = own_encoder(study, prefix)
    return Cost(views * settings.questions, views * (2 * model.weights * tokens + (encoder.flops if encoder else 0)))


def occluded_views(study: Study) -> int:
    """Occluded images that are encoded, each image itself among them."""
    settings = study.settings.evaluation.occlusion
    return min(settings.images, questions(study, study.settings.folds.dataset)[1]) * (settings.grid**2 + 1)


def features_gb(study: Study, prefix: str, dataset: str) -> float:
    """GB of the stored vision features of a data set; 0 where they are above the budget, and computed on the fly."""
    width, model = 2 if study.settings.features.dtype == "bf16" else 4, model_sizes(study, prefix)
    described = study.datasets[dataset]
    known = isinstance(described, Captions) and described.size < inf
    images = described.size if known else questions(study, dataset)[1]
    stored = images * model.image_tokens * model.width * width / 1e9
    return stored if stored <= study.settings.features.budget_gb else 0.0
