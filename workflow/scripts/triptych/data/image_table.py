"""Images of a data set's `images/` by row, in any order, without the tables in memory."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from triptych.data.images import decode
from triptych.errors import TriptychError, message_of
from triptych.io.manifest import sha256_bytes
from triptych.io.parquet import parts_of_table, read_table

KEPT_GROUPS = 4  # row groups of 100 images in memory: 40 MB of photographs


class ImageTable:
    """Images by row. Threads may share it.

    Attributes:
        image_ids: id of every row.
        hashes: sha256 of every row's image file.
    """

    def __init__(self, path: Path):
        """Open the table at `path`, a folder of Parquet files or one file.

        Raises:
            TriptychError: it is missing or is not Parquet.
        """
        rows = read_table(path, ["id", "sha256"])
        self.image_ids = [row["id"] for row in rows]
        self.hashes = [row["sha256"] for row in rows]
        self._path = path
        self._remedy = f"delete the folder {path.parent} and run again"
        files = [pq.ParquetFile(part, memory_map=True) for part in parts_of_table(path)]
        self._groups = [(file, group) for file in files for group in range(file.metadata.num_row_groups)]
        sizes = (file.metadata.row_group(group).num_rows for file, group in self._groups)
        self._starts = list(accumulate(sizes, initial=0))
        self._kept: OrderedDict[int, pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.image_ids)

    def images(self, rows: Sequence[int]) -> Iterator[Image.Image]:
        """Give the images of `rows` in RGB, each decoded when it is asked for: large ones are not in memory together.

        Raises:
            TriptychError: the table is damaged, or an image cannot be decoded or differs from its sha256.
        """
        with self._lock:
            files = [self._bytes(row) for row in rows]
        return (self._decoded(row, data) for row, data in zip(rows, files, strict=True))

    def file(self, row: int) -> bytes:
        """Give the image file of a row as it is stored.

        Raises:
            TriptychError: the table is damaged.
        """
        with self._lock:
            return self._bytes(row)

    def _bytes(self, row: int) -> bytes:
        group = bisect_right(self._starts, row) - 1
        if group not in self._kept:
            file, number = self._groups[group]
            try:
                table = file.read_row_group(number, columns=["image.bytes"], use_threads=False)
                self._kept[group] = table.column("image").combine_chunks().field("bytes")
            except (pa.ArrowException, OSError, KeyError) as error:
                reason = message_of(error)
                raise TriptychError(f"{self._path}: cannot be read as Parquet ({reason}); {self._remedy}") from None
            if len(self._kept) > KEPT_GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group][row - self._starts[group]].as_py()

    def _decoded(self, row: int, data: bytes) -> Image.Image:
        if sha256_bytes(data) != self.hashes[row]:
            reason = "its bytes differ from its sha256"
        else:
            try:
                return decode(data, min_side=1)  # its size was checked by the settings of its data set
            except TriptychError as error:
                reason = str(error)
        raise TriptychError(f"{self._path}: image {self.image_ids[row]}: {reason}; {self._remedy}")
