"""Which bytes of a zip archive hold some of its members, and a view of the archive that has no others."""

import errno
import io
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# Bytes between two members up to which one request fetches both. Of 33,000 images chosen at random among 558,000 (of
# 49 kB, together 1.61 GB), 0, 64 and 256 KiB take 31,026, 28,958 and 22,696 requests, with 0, 5 and 68 % more bytes; of
# 11,000 among 60,000, they take 8,963, 7,222 and 3,396 requests, with 0, 12 and 122 % more.
GAP = 1 << 16
MAX_SPAN = 8 << 20  # bytes that one request fetches, unless a single member is larger
AROUND = 30 + 2 * 65535 + 24  # bytes before and after a member's data, at most


@dataclass
class Span:
    """Neighbouring bytes of an archive that one request fetches: from `start` up to `stop`, with members in them."""

    start: int
    stop: int
    members: list[zipfile.ZipInfo]


class Pieces(io.RawIOBase):
    """A file of which only the end and one window are here; more is put before the end where `fetch` is given.

    Elsewhere there is nothing to read, as behind the end of a file.

    Attributes:
        name: of the file.
        size: of the whole file, in bytes.
        tail: where the end begins, and its bytes.
        window: where the window begins, and its bytes.
        fetch: gives the bytes from one place up to another.
    """

    def __init__(self, name: str, size: int, tail: bytes, fetch: Callable[[int, int], bytes] | None = None):
        super().__init__()
        self.name = name
        self.size, self.tail, self.window, self.fetch = size, (size - len(tail), tail), (0, b""), fetch
        self._at = 0

    def seekable(self) -> bool:
        """Tell that any place can be gone to."""
        return True

    def tell(self) -> int:
        """Give the place that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place.

        Raises:
            OSError: it lies before the file.
        """
        place = offset + (0, self._at, self.size)[whence]
        if place < 0:
            raise OSError(errno.EINVAL, "before the beginning of the file")
        self._at = place
        return place

    def read(self, size: int = -1) -> bytes:
        """Read on; fewer bytes than asked for where no more are here."""
        stop = self.size if size < 0 else min(self._at + size, self.size)
        begin, end = self.tail
        if self.fetch and self._at < min(stop, begin):
            self.tail = (self._at, self.fetch(self._at, begin) + end)
        for start, data in (self.window, self.tail):
            if start <= self._at < start + len(data):
                found = data[self._at - start : stop - start]
                self._at += len(found)
                return found
        return b""


def fits(member: zipfile.ZipInfo, limit: int) -> bool:
    """Tell whether a member has at most `limit` bytes, and is not much larger when compressed."""
    return member.file_size <= limit and member.compress_size <= limit + AROUND


def spans(archive: zipfile.ZipFile, members: Iterable[zipfile.ZipInfo]) -> list[Span]:
    """Find the bytes of members, with their headers, in the order of the archive; neighbours are joined.

    A member ends where the next one or the directory begins: only its own header, which is not read yet, tells it more
    exactly.
    """
    end = archive.start_dir
    places = sorted({member.header_offset for member in archive.filelist} | {end})
    found: list[Span] = []
    for member in sorted(members, key=lambda member: member.header_offset):
        start = min(max(member.header_offset, 0), end)  # a damaged directory may name any place
        following = bisect_right(places, start)
        stop = min(start + AROUND + member.compress_size, places[following] if following < len(places) else end, end)
        last = found[-1] if found else None
        if last and start - last.stop <= GAP and stop - last.start <= MAX_SPAN:
            last.stop = max(last.stop, stop)
            last.members.append(member)
        else:
            found.append(Span(start, max(start, stop), [member]))
    return found
