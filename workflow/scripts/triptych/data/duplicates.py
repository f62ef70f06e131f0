"""Images that are equal or look alike."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from triptych.data.images import THUMBNAIL
from triptych.io.parquet import read_table

PHASH_BITS = 10  # near-duplicates differ in at most this many of 64
CORRELATION = 0.98  # and their thumbnails correlate more than this


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Compute the pHash of thumbnails: which of the 8 x 8 lowest frequencies of a cosine transform exceed their median.

    Zauner (2010), "Implementation and benchmarking of perceptual image hash functions", with the ImageHash package's
    choice of frequencies.

    Args:
        thumbnails: (N, 32, 32) grey values.

    Returns:
        (N,) uint64; near-duplicates differ in few bits.
    """
    places, frequencies = np.arange(THUMBNAIL) + 0.5, np.arange(8)[:, None]
    cosines = np.cos(np.pi / THUMBNAIL * frequencies * places)  # (8, 32)
    low = (cosines @ thumbnails.astype(np.float64) @ cosines.T).reshape(len(thumbnails), 64)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def normalised(thumbnails: np.ndarray) -> np.ndarray:
    """Bring thumbnails (N, 32, 32) into rows (N, 1024) of mean 0 and length 1, whose products are correlations.

    An image of one flat grey becomes zeros: it correlates with nothing.
    """
    rows = thumbnails.reshape(len(thumbnails), THUMBNAIL**2).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def similar_pairs(first: np.ndarray, second: np.ndarray, threshold: float) -> Iterator[tuple[int, int, float]]:
    """Find pairs of thumbnails that correlate above `threshold`: their positions, and the correlation.

    Args:
        first: (N, 32, 32) grey values.
        second: (M, 32, 32) grey values; where it is `first` itself, each pair is given once, and none with itself.
        threshold: correlation, -1 to 1.
    """
    rows, columns = normalised(first), normalised(second)
    step = max(1, 20_000_000 // max(1, len(columns)))  # keeps the products below 80 MB
    for start in range(0, len(rows), step):
        similarity = rows[start : start + step] @ columns.T
        for position, other in np.argwhere(similarity > threshold):
            if second is not first or start + position < other:
                yield int(start + position), int(other), float(similarity[position, other])


def read_thumbnails(table: Path) -> tuple[list[dict], np.ndarray]:
    """Read rows (id, sha256, group, split) and thumbnails (N, 32, 32), uint8, of an `images/`.

    Raises:
        TriptychError: the table cannot be read.
    """
    rows = read_table(table, columns=["id", "sha256", "group", "split", "thumbnail"])
    values = np.frombuffer(b"".join(row.pop("thumbnail") for row in rows), np.uint8)
    return rows, values.reshape(-1, THUMBNAIL, THUMBNAIL)


class SeenBefore:
    """Finds images that were taken already, or nearly: the first of them is kept.

    A near-duplicate has a pHash within `PHASH_BITS` bits and a thumbnail that correlates above `CORRELATION`.
    """

    def __init__(self, keep_near: bool):
        self.keep_near = keep_near
        # By sha256, of one image and its exact copies: captions, and the first of the files that have them.
        self.captions: dict[str, dict[str, str]] = defaultdict(dict)
        self.ids: list[str] = []
        self.by_hash: dict[str, str] = {}
        self.hashes = np.zeros(1024, np.uint64)
        self.scratch = np.zeros_like(self.hashes)
        self.thumbnails = np.zeros((1024, THUMBNAIL * THUMBNAIL), np.uint8)

    def reason(self, row: dict, path: str) -> str | None:
        """Say why the image of `row`, which its source names `path`, is a duplicate.

        Returns:
            None where it is new, and then it is remembered.
        """
        self.captions[row["sha256"]].setdefault(row["caption"] or "", path)
        if first := self.by_hash.get(row["sha256"]):
            return f"the same image as {first}"
        number, phash = len(self.ids), np.uint64(int(row["phash"], 16))
        thumbnail = np.frombuffer(row["thumbnail"], np.uint8)
        if not self.keep_near:
            differing = np.bitwise_xor(self.hashes[:number], phash, out=self.scratch[:number])
            near = np.bitwise_count(differing) <= PHASH_BITS
            if near.any():
                near = np.flatnonzero(near)
                rows = normalised(np.concatenate([thumbnail[None], self.thumbnails[near]]))
                similarity = rows[1:] @ rows[0]
                if similarity.max() > CORRELATION:
                    self.by_hash[row["sha256"]] = first = self.ids[near[int(similarity.argmax())]]
                    return f"nearly the same image as {first}"
        if number == len(self.hashes):
            self.hashes = np.concatenate([self.hashes, np.zeros_like(self.hashes)])
            self.scratch = np.zeros_like(self.hashes)
            self.thumbnails = np.concatenate([self.thumbnails, np.zeros_like(self.thumbnails)])
        self.hashes[number], self.thumbnails[number] = phash, thumbnail
        self.ids.append(row["id"])
        self.by_hash[row["sha256"]] = row["id"]
        return None

    def suspects(self) -> Iterator[str]:
        """Describe images that stand in three files or more with other captions: they often mean "not available".

        One file with several captions is none of them: many data sets have that.
        """
        for sha256, captions in self.captions.items():
            if len(set(captions.values())) > 2:
                yield (
                    f"image {self.by_hash[sha256]} stands in several files with {len(captions)} captions: "
                    f"is it a placeholder? Then add {sha256} to `placeholders`"
                )
