"""Columns of every table that data steps write."""

import json

import pyarrow as pa

from triptych.data.images import THUMBNAIL

FOLD_SCHEMA = pa.schema(
    [("fold", pa.string()), ("question_id", pa.string()), ("part", pa.string()), ("group", pa.string())]
)


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


RECORD_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("arm", "view", "split")]
    + [("seed", pa.int64())]
    + [(name, pa.string()) for name in (*QUESTION_COLUMNS, "gold", "prediction")]
    + [("tokens", pa.int32()), ("logprob", pa.float32())]
)


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


SPLITS = ("train", "validation", "test")


QUESTION_FIELDS = ("question", "answer", "answer_type", "content_type", "modality", "location")


CANDIDATE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "path", "place", "split", "caption", "group", "boxes", "stamp")]
)


QUESTION_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("question_id", "image_id", "group", "split", *QUESTION_FIELDS)]
)


REJECT_SCHEMA = pa.schema([("kind", pa.string()), ("id", pa.string()), ("reason", pa.string())])
