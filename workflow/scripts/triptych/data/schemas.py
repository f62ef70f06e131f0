"""Columns of all tables, in the order in which the data flow."""

import json

import pyarrow as pa

from triptych.data.images import THUMBNAIL


def _text_columns(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.string()) for name in names]


# Values of the column `split`: the parts of a source, and of each fold.
SPLITS = ("train", "validation", "test")
STRICTEST = SPLITS[::-1]  # an image of several parts belongs to the first of these
ANSWER_TYPES = ("OPEN", "CLOSED")

UNKNOWN = "Unknown"  # content type, modality or location that a source does not state

# What a source says of a question; `answer_type` is OPEN or CLOSED, and CAPTION for captions.
QUESTION_FIELDS = ("question", "answer", "answer_type", "content_type", "modality", "location")

# sources/<data set>/candidates.parquet, by `fetch`: the images that a source lists, in the order of the choice.
CANDIDATE_SCHEMA = pa.schema(_text_columns("id", "path", "place", "split", "caption", "group", "boxes", "stamp"))

# questions.parquet in sources/<data set>, by `fetch`, and in data/<data set>, by `prepare`: the questions, or the one
# question that a caption answers.
QUESTION_SCHEMA = pa.schema(_text_columns("question_id", "image_id", "group", "split", *QUESTION_FIELDS))

# rejects.parquet beside either: what is not used; `kind` is image, question or boxes.
REJECT_SCHEMA = pa.schema(_text_columns("kind", "id", "reason"))

# Blocks in the cache, by `check`, and data/<data set>/images/, by `prepare`: the images as the source has them.
IMAGE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("phash", pa.string()),
        ("thumbnail", pa.binary(THUMBNAIL * THUMBNAIL)),
        ("source", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
        ("boxes", pa.string()),
    ],
    # Makes `datasets.load_dataset("parquet", ...)` show the column as images.
    metadata={"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
)

# data/<data set>/folds.parquet, by `folds`: the part of every question in every fold.
FOLD_SCHEMA = pa.schema(_text_columns("fold", "question_id", "part", "group"))

# What a prediction repeats of its question.
QUESTION_COLUMNS = (
    "question_id",
    "image_id",
    "group",
    "question",
    "answer_type",
    "content_type",
    "modality",
    "location",
)

# Tokens of the gold answer, its end included, and the natural logarithm of the probability that the model gives it.
# Missing of baselines, of other images than the question's own, and in answers that version 0.1 stored.
GOLD_COLUMNS = {"gold_tokens": pa.int32(), "gold_logprob": pa.float32()}

# The answer out of those that the fold trains on, where `evaluation.constrained` asks for it.
CONSTRAINED = "constrained"

# predictions/, by `predict` and `baselines`: the answer of one arm to each question.
RECORD_SCHEMA = pa.schema(
    [
        *_text_columns("arm", "view", "split"),
        ("seed", pa.int64()),
        *_text_columns(*QUESTION_COLUMNS, "gold", "prediction"),
        ("tokens", pa.int32()),
        ("logprob", pa.float32()),
        *GOLD_COLUMNS.items(),
        (CONSTRAINED, pa.string()),
    ]
)

# probes/, by `probe`: what each probe is trained on, and its answers for the images that a fold holds out.
PROBED_ATTRIBUTES = ("modality", "location", "organ")
PROBES = ("linear", "mlp")
PROBE_TASKS = ("labels", "shuffled")
PROBE_SCHEMA = pa.schema(
    [
        *_text_columns("representation", "split"),
        ("seed", pa.int64()),
        ("probe_seed", pa.int64()),
        *_text_columns("attribute", "probe", "task", "image_id", "group"),
        ("truth", pa.list_(pa.string())),
        ("answer", pa.list_(pa.string())),
    ]
)

# occlusion/, by `occlude`: what log-probability the gold answer loses with each square of the image grey. `inside` is
# the share of each square within the boxes of what is asked for, `hits` whether it counts as pointing at one.
OCCLUSION_SCHEMA = pa.schema(
    [
        *_text_columns("arm", "split"),
        ("seed", pa.int64()),
        *_text_columns("question_id", "image_id", "group", "question", "gold", "boxes"),
        ("logprob", pa.float32()),
        ("drops", pa.list_(pa.float32())),
        ("inside", pa.list_(pa.float32())),
        ("hits", pa.list_(pa.bool_())),
    ]
)
