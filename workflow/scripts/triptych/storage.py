"""Files: hashes, atomic writes, manifests, safe paths. The one error type that a user sees is here too."""

import base64
import binascii
import csv
import errno
import glob
import hashlib
import io
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from triptych.direct_file import DirectFile

ROW_GROUP = 100  # rows: a picture is read without its neighbours by the thousand
CHECKED = {"write_page_checksum": True}  # a table's pages carry checksums, which readers compare
# Pictures are compressed already, and hashes cannot be.
PICTURE_TABLE = {"compression": "none", "use_dictionary": False, "write_page_index": True}
SEAL = "seal"  # key of a record's own hash
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TriptychError(Exception):
    """A fault that the user can mend. Its message names the file, key or row, and what to do."""


def run_step(main: Callable[[], None]) -> None:
    """Run one step's command; a `TriptychError` or a full disk becomes one line on stderr and exit status 1."""
    _leave_out_pandas()
    try:
        main()
    except TriptychError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        where = f" for {error.filename}" if error.filename else ""
        sys.exit(f"error: no space left{where} ({error}); free some and run again: finished parts are kept")


class _NoPandas:
    """An import hook by which there is no pandas."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _leave_out_pandas() -> None:
    """Let pyarrow find, once, that there is no pandas: else it imports it for its first list, 0.3 s of every step."""
    hook = _NoPandas()
    sys.meta_path.insert(0, hook)
    pa.array([0])
    sys.meta_path.remove(hook)


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, whatever order they were written in."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return sha256_bytes(canonical_json(value).encode())


def stable_order(seed: int, *parts: str) -> bytes:
    """A sort key that depends on `seed` and `parts` alone, so an order never depends on where items came from."""
    return hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()


def derive_seed(seed: int, *parts: str) -> int:
    """A 63-bit seed of its own for every purpose named by `parts` (weights, data order, fold, ...)."""
    return int.from_bytes(stable_order(seed, *parts)[:8], "big") >> 1


def fsync_directory(path: Path) -> None:
    """Make a rename inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_prefix(path: Path) -> str:
    """Names the process that writes, so that what a killed one left can be told from work in progress."""
    return f".{path.name}.{socket.gethostname()}-{os.getpid()}."


def _sweep(path: Path) -> None:
    """Remove what processes of this machine that no longer run left of earlier attempts to write `path`."""
    start = f".{path.name}.{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(start)}*"):
        process = left.name.removeprefix(start).split(".")[0]
        if process.isdigit() and not _runs(int(process)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, for another user
        return True
    return True


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`; when the block ends well, sync it and rename it to `path`.

    An error inside the block leaves `path` as it was and removes the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_temporary_prefix(path))
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(source: Path, path: Path) -> None:
    """Give a file a second name, or copy it where the two are on different disks, or theirs knows no links."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; when the block ends well, sync its files and put it at `path`.

    A folder already at `path` is replaced only after the new one is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_temporary_prefix(path)))
    temporary.chmod(0o755)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                file.chmod(0o644)  # safetensors makes its files readable for the owner only
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            elif file.is_dir():
                fsync_directory(file)
        fsync_directory(temporary)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=_temporary_prefix(path)))
            path.rename(old / path.name)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        fsync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys atomically: equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_record(path: Path, value: dict) -> None:
    """Write a JSON object as `write_json` does, with a hash of the rest under `seal`, which `read_json` checks."""
    value = json.loads(json.dumps(value))  # keys as they will be read
    write_json(path, {**value, SEAL: sha256_json(value)})


def csv_text(rows: Iterable[dict], columns: list[str], decimals: int) -> str:
    """Rows as CSV; fractions with a fixed number of decimals, nothing for None."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {name: f"{value:.{decimals}f}" if isinstance(value, float) else value for name, value in row.items()}
        writer.writerow(cells)
    return buffer.getvalue()


def read_json(path: Path) -> Any:
    """Read JSON; of a record that `write_record` wrote, what was given to it.

    Raises:
        TriptychError: the file is missing, is not JSON, or is a record that has changed since it was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TriptychError(f"{path}: no such file; the step that writes it has not run") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TriptychError(f"{path}: not valid JSON ({error}); restore it, or delete it and run again") from None
    if isinstance(value, dict) and (seal := value.pop(SEAL, None)) and seal != sha256_json(value):
        raise TriptychError(f"{path}: damaged or edited: it differs from its seal; delete it and run again")
    return value


def require_files(folder: Path, files: Mapping[str, str], mend: str) -> None:
    """Compare files below `folder` with their sha256, by name.

    Raises:
        TriptychError: one is missing or has changed; it ends with `mend`, what to do about it.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise TriptychError(f"{path}: missing, though manifest.json lists it; {mend}")
        if sha256_file(path) != expected:
            raise TriptychError(f"{path}: differs from the hash in manifest.json; {mend}")


def write_table(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    """Write rows as a Parquet table atomically, with about 100 rows in each group."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, row_group_size=ROW_GROUP, **CHECKED)


class TableWriter:
    """A Parquet file written in groups of `group` rows, so that memory does not grow with the table."""

    def __init__(self, path: Path, schema: pa.Schema, group: int = ROW_GROUP, **options: Any):
        self.schema = schema
        self.group = group
        self.file = DirectFile(path)
        self.writer = pq.ParquetWriter(self.file, schema, **CHECKED, **options)
        self.rows: list[dict] = []
        self.batches: list[pa.RecordBatch] = []

    def add(self, row: dict) -> None:
        """Append one row."""
        self.rows.append(row)
        if len(self.rows) == self.group:
            self.add_batch(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
            self.rows = []

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Append the rows of a batch that has the table's columns, in any order."""
        self.batches.append(batch.select(self.schema.names).cast(self.schema))
        while sum(len(part) for part in self.batches) >= self.group:
            pending = pa.Table.from_batches(self.batches)
            self.writer.write_table(pending.slice(0, self.group), row_group_size=self.group)
            self.batches = pending.slice(self.group).to_batches()

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                if self.rows:
                    self.add_batch(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
                if self.batches:
                    self.writer.write_table(pa.Table.from_batches(self.batches, schema=self.schema))
                self.writer.close()
                self.file.close()
        finally:
            self.writer.is_open = False  # after a failure, its own clean-up would write once more
            self.file.abandon()


@contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose rows are read as they are asked for; it is never held in memory as a whole.

    Raises:
        TriptychError: the file is missing, or is damaged, which may show only when its rows are read.
    """
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True) as table:
            stored = (table.metadata.metadata or {}).get(b"ARROW:schema")
            # Names of columns are in the footer, which has no checksum, and once more in here.
            if stored and not pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored))).equals(table.schema_arrow):
                raise pa.ArrowInvalid("its columns are not those that were written")
            yield table
    except (pa.ArrowException, OSError, UnicodeDecodeError, binascii.Error) as error:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise
        told = " ".join(str(error).split())  # Arrow's words may be several lines
        raise TriptychError(f"{path}: cannot be read as Parquet ({told}); delete it and run again") from None


def parts_of_table(path: Path) -> list[Path]:
    """The files of a table that is a folder of Parquet files, in order; of one that is a file, that file.

    Raises:
        TriptychError: the folder has none.
    """
    if not path.is_dir():
        return [path]
    if not (parts := sorted(path.glob("*.parquet"))):
        raise TriptychError(f"{path}: holds no Parquet file; delete the folder's manifest.json and run again")
    return parts


def read_table(path: Path, columns: list[str] | None = None) -> list[dict]:
    """Read a Parquet table, one file or a folder of files, as a list of rows.

    Raises:
        TriptychError: a file is missing, damaged or without one of `columns`.
    """
    rows = []
    for part in parts_of_table(path):
        with open_table(part) as table:
            if lacking := set(columns or ()) - set(table.schema_arrow.names):
                raise TriptychError(f"{part}: has no column {min(lacking)}; delete it and run again")
            rows += table.read(columns).to_pylist()
    return rows


def resolve_under(root: Path, name: str) -> Path:
    """The path of `name` below `root`, links followed.

    Raises:
        TriptychError: `name` is absolute or leads out of `root`.
    """
    # With strings, and the folder's own links followed once: this is done for every picture.
    top = _real_folder(os.fspath(root))
    path = os.path.join(_real_folder(os.path.join(top, os.path.dirname(name))), os.path.basename(name))  # noqa: PTH118, PTH119, PTH120
    if os.path.islink(path) or os.path.basename(name) in ("", ".", ".."):  # noqa: PTH114, PTH119
        path = os.path.realpath(path)
    if os.path.isabs(name) or os.path.commonpath((top, path)) != top:  # noqa: PTH117
        raise TriptychError(f"{name!r} leads out of {top}; only files below that folder may be named")
    return Path(path)


@lru_cache(maxsize=1024)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)
