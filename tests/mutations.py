"""Inputs gone wrong, from a seed: bytes, values, pictures, tables, archives and configurations, mutated at random."""

import csv
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import COLOURS, image_bytes
from PIL import Image

# What people and programs have put where a name, a text or a number was wanted.
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 7, 2**63, 10**400, 1e308, float("nan"), float("inf"), 0.5),
    *("", " ", "\t", "None", "N/A", "null", "nan", "yes", "No ", "OPEN", "closed ", "\0", "a\0b", "\ud800", "\ufeffx"),
    *("../x", "/etc/passwd", "C:\\a.png", ".\\0.png", "0.PNG", "a/../0.png", "x" * 300, "x" * 5000, "é", "é", "赤い"),
    *("<script>", "=1+1", "$(touch PWNED)", "`touch PWNED`", "'; --", "{x}", "{0}", "%s", "</s>", "<|im_end|>", "2\n"),
    *([], [1], ["a", "b"], {}, {"a": 1}, [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}], [[[[]]]]),
]
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000")
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr")
HEADS = (b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, insert or drop some of the bytes; now and then replace the head, or leave all out."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 16, 64])
        match rng.randrange(8):
            case 0:
                data[at : at + length] = rng.randbytes(length)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[max(0, at - length) : at]
            case 4:
                data[at:at] = bytes([rng.choice(b'\0\xff\n",;\t{}[]\\')]) * length
            case 5:
                head = rng.choice(HEADS)
                data[: len(head)] = head
            case 6:
                data[at : at + length] = bytes(length)
            case 7 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
    return bytes(data)


def mutate_value(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """Replace a value, or something in it, or drop, repeat or rename a key."""
    if isinstance(value, dict) and value and depth < 6 and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(6):
            case 0:
                del changed[key]
            case 1:
                other = rng.choice([f"{key} ", str(key).upper(), f"{key}x", "", "é", "_", "audit.json"])
                changed[other] = changed.pop(key)
            case _:
                changed[key] = mutate_value(rng, value[key], depth + 1)
        return changed
    if isinstance(value, list) and value and depth < 6 and rng.random() < 0.85:
        changed, at = list(value), rng.randrange(len(value))
        match rng.randrange(5):
            case 0:
                del changed[at]
            case 1:
                changed.insert(at, changed[at])
            case _:
                changed[at] = mutate_value(rng, value[at], depth + 1)
        return changed
    return rng.choice(VALUES)


def picture(rng: random.Random, number: int) -> bytes:
    """A picture: mostly a good PNG, else of another format, mode or size, or damaged."""
    good = image_bytes(rng.choice(list(COLOURS)), rng.choice(["left", "right"]), number)
    if rng.random() < 0.6:
        return good
    image = Image.open(io.BytesIO(good))
    if rng.random() < 0.3:
        image = image.resize((rng.choice([1, 3, 32, 200]), rng.choice([1, 3, 32, 200])))
    buffer = io.BytesIO()
    try:
        mode = rng.choice(MODES)
        image = image.convert("I").convert(mode) if mode in ("I;16", "F") else image.convert(mode)
        image.save(buffer, rng.choice(FORMATS))
        data = buffer.getvalue()
    except (OSError, ValueError):  # not every format has every mode
        data = good
    return mutate_bytes(rng, data) if rng.random() < 0.5 else data


def write_table(rng: random.Random, path: Path, rows: list[dict]) -> None:
    """Write rows as the format that the name asks for, in one of the ways that people's programs do."""
    columns = list(dict.fromkeys(key for row in rows for key in row if isinstance(key, str))) or ["x"]
    match path.suffix:
        case ".csv" | ".tsv":
            text = io.StringIO()
            writer = csv.writer(text, delimiter="\t" if path.suffix == ".tsv" else rng.choice(",,;"))
            writer.writerow(columns)
            writer.writerows([[row.get(column, "") for column in columns] for row in rows])
            data = text.getvalue().encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]), "replace")
        case ".jsonl":
            data = "\n".join(json_text(row) for row in rows).encode("utf-8", "surrogatepass")
        case ".json":
            data = json_text(rows).encode(rng.choice(["utf-8", "utf-8-sig"]), "surrogatepass")
        case _:
            texts = {name: pa.array([text_or_none(row.get(name)) for row in rows], pa.string()) for name in columns}
            buffer = io.BytesIO()
            pq.write_table(pa.table(texts), buffer)
            data = buffer.getvalue()
    path.write_bytes(data)


def json_text(value: Any) -> str:
    """JSON as lax programs write it: numbers of any length and NaN."""
    return json.dumps(value, ensure_ascii=False)


def text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)[:1000].encode("utf-8", "replace").decode()


def write_shard(rng: random.Random, path: Path, samples: int) -> int:
    """Write a tar shard of pictures and captions; gives how many pictures it holds."""
    pictures = 0
    with tarfile.open(path, "w") as shard:
        for number in range(samples):
            key = rng.choice([f"{number}", f"{number}", f"p{number}.2", f"a b{number}", f"../{number}", f"é{number}"])
            members = {f"{key}.{rng.choice(['png', 'jpg', 'PNG'])}": picture(rng, number)}
            pictures += 1
            caption = f"a thing of number {number}"
            if rng.random() < 0.5:
                members[f"{key}.txt"] = caption.encode() if rng.random() < 0.8 else rng.randbytes(9)
            elif rng.random() < 0.8:
                said = mutate_value(rng, {"caption": caption}) if rng.random() < 0.4 else {"caption": caption}
                members[f"{key}.json"] = json_text(said).encode("utf-8", "surrogatepass")
            for name, data in members.items():
                about = tarfile.TarInfo(name)
                about.size = len(data)
                shard.addfile(about, io.BytesIO(data))
    return pictures
