"""Files that are written past the system's cache."""

import errno
import fcntl
import io
import mmap
import os
from pathlib import Path
from typing import Any

DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it
SIZE = 4 << 20  # bytes written at a time; a multiple of every disk's block


class DirectFile(io.RawIOBase):
    """A new file that is written past the system's cache, where the file system can.

    What is written once, by the gigabyte, and not read soon gains nothing from the cache: copying into it takes longer
    than hashing the same bytes, and then the sync waits for the disk.
    """

    def __init__(self, path: Path):
        """Make the file, empty.

        Raises:
            OSError: it cannot be made.
        """
        self._name = os.fspath(path)
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system without direct writes
                raise
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._buffer = mmap.mmap(-1, SIZE)  # direct writes need memory that begins where a page does

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any) -> int:
        """Append bytes; they go to the disk when the buffer is full, and on `close`.

        Raises:
            OSError: the disk is full, or fails.
        """
        view = memoryview(data).cast("B")
        start = 0
        while start < len(view):
            start += self._buffer.write(view[start : start + SIZE - self._buffer.tell()])
            if self._buffer.tell() == SIZE:
                self._empty_buffer()
        return len(view)

    def close(self) -> None:
        """Write what is left and close the file.

        Raises:
            OSError: the disk is full, or fails.
        """
        if not self.closed:
            try:
                self._use_cache()  # what is left need not fill a block
                self._empty_buffer()
            finally:
                self.abandon()

    def abandon(self) -> None:
        """Close the file as it is; what was not written yet is lost."""
        if not self.closed:
            os.close(self._file)
            self._buffer.close()
            super().close()

    def _empty_buffer(self) -> None:
        written, pending = 0, self._buffer.tell()
        while written < pending:
            with memoryview(self._buffer) as memory, memory[written:pending] as rest:
                try:
                    written += os.write(self._file, rest)
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._use_cache():  # as after a write that was cut short
                        raise OSError(error.errno, error.strerror, self._name) from None
        self._buffer.seek(0)

    def _use_cache(self) -> bool:
        """Write through the cache from here on; False where that is so already."""
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~DIRECT)
        return bool(flags & DIRECT)
