"""A zip archive of a hub data set, of which the members that are needed are fetched, and not the whole file.

The archive's directory is fetched once and kept. Members are fetched by byte ranges, checked (CRC-32), and kept in
parts: zip archives of some hundred members, each written whole or not at all. Nothing is unpacked: the names of members
never become names of files.
"""

import errno
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock

from triptych.download.huggingface import BROKEN, download, open_zip, read_member, stop_if_damaged, stored_file
from triptych.download.remote_file import RemoteFile
from triptych.download.zip_spans import Pieces, Span, fits, spans
from triptych.errors import TriptychError, message_of, refusal
from triptych.io.atomic import atomic_path
from triptych.io.manifest import read_json, sha256_bytes, sha256_json, write_record
from triptych.utils.prefetch import map_ahead
from triptych.utils.terminal import announce, duration

SMALL = 64 << 20  # bytes: archives up to this are downloaded whole
MOST = 0.5  # where more than this share of an archive is wanted, it is downloaded whole
MAX_DIRECTORY = 1 << 30  # bytes
TAIL = 1 << 17  # bytes from the end that are fetched first: more than the longest end record, with its comment
CONNECTIONS = 16
PART = 64 << 20  # bytes of a part: what an interruption loses at most
LONGEST_NAME = 4096  # of a member that is fetched
PROGRESS_SECONDS = 10
DIRECTORY, NOTE = "directory", "directory.json"


@contextmanager
def open_members(repo: str, filename: str, revision: str, cache: Path) -> Iterator["WholeZip | RemoteZip"]:
    """Open an archive at a pinned commit, to read members of it.

    The whole archive is used where it is in the cache, and a small one is downloaded whole.

    Raises:
        TriptychError: the archive is unavailable, or is no readable zip archive.
    """
    about = repo, filename, revision
    folder = cache / "hub-zip" / f"{repo}/{filename}".replace("/", "--") / revision
    path = stored_file(*about, cache)
    if path is None and not (folder / NOTE).is_file():
        remote = RemoteFile(*about)
        if remote.size <= SMALL:
            path = download(*about, cache)
        else:
            _keep_directory(remote, filename, folder)
    if path:
        with open_zip(path) as archive:
            yield WholeZip(archive)
    else:
        with ExitStack() as stack:
            yield RemoteZip(about, cache, folder, stack)


class WholeZip:
    """An archive that is in the cache as a whole.

    Attributes:
        members: the archive's directory by name; of equal names the last one.
    """

    def __init__(self, archive: zipfile.ZipFile):
        self._archive, self.members = archive, archive.NameToInfo

    def bring(self, names: Iterable[str], limit: int) -> None:
        """Do nothing: all members are here."""

    def read(self, name: str, limit: int) -> bytes:
        """Read a member; no more than its declared size is ever read.

        Raises:
            TriptychError: there is no such member, or it is larger than `limit` bytes, or damaged as it is published.
            OSError: the archive has been damaged since it was stored.
        """
        member = _usable(self._archive, name, limit)
        try:
            return read_member(self._archive, member)
        except TriptychError:
            stop_if_damaged(Path(self._archive.filename))
            raise


class RemoteZip:
    """An archive on the hub, some of whose members are in the cache."""

    def __init__(self, about: tuple[str, str, str], cache: Path, folder: Path, stack: ExitStack):
        """Open the parts that are stored.

        Args:
            about: repository, file and commit.
            cache: folder of downloads.
            folder: the archive's directory and parts.
            stack: closes the parts.
        """
        self._about, self._cache, self._folder, self._stack = about, cache, folder, stack
        self._name = PurePosixPath(about[1]).name
        self._archive: zipfile.ZipFile | None = None
        self._remote: RemoteFile | None = None
        self._parts: dict[Path, zipfile.ZipFile] = {}
        self._stored: dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        self._open_parts()

    @property
    def members(self) -> dict[str, zipfile.ZipInfo]:
        """The archive's directory by name; of equal names the last one."""
        return self._directory().NameToInfo

    def bring(self, names: Iterable[str], limit: int) -> None:
        """Fetch members that are not stored yet; of those that cannot be used the reason is stored.

        Args:
            names: of members; unknown ones are left out.
            limit: largest size of a member in bytes.

        Raises:
            TriptychError: the archive is unavailable; what has been fetched stays.
        """
        # Two data sets may want members of one archive at the same time.
        with FileLock(self._folder / "lock"):
            self._open_parts()
            missing = [name for name in dict.fromkeys(names) if name not in self._stored and len(name) <= LONGEST_NAME]
            if not missing:
                return
            archive = self._directory()
            found = [archive.NameToInfo[name] for name in missing if name in archive.NameToInfo]
            wanted = spans(archive, [member for member in found if fits(member, limit)])
            size, whole = _bytes(wanted), archive.fp.size
            if size > MOST * whole:
                announce(f"{self._name}: most of it is needed; downloading the whole archive, {_gb(whole)}")
                download(*self._about, self._cache)
                return
            announce(
                f"{self._name}: fetching {len(found)} of {len(archive.filelist)} members, {_gb(size)} of {_gb(whole)}, "
                f"with {len(wanted)} requests"
            )
            if wanted:
                self._keep(archive, wanted)
            if unfit := [member.filename for member in found if not fits(member, limit)]:
                with self._new_part(unfit) as part:
                    for name in unfit:
                        _write(part, name, reason=_too_large(name, limit))
            self._open_parts()

    def read(self, name: str, limit: int) -> bytes:
        """Read a member; one that is not stored is fetched, and not kept.

        Raises:
            TriptychError: there is no such member, or it is damaged or larger than `limit` bytes.
            OSError: it is not stored and cannot be fetched, or its part is damaged.
        """
        if name in self._stored:
            part, member = self._stored[name]
            if member.comment:
                raise TriptychError(member.comment.decode())
            try:
                return part.read(member)
            except BROKEN as error:
                if refusal(error) is not None:
                    raise
                raise OSError(errno.EIO, f"{part.filename}: damaged ({message_of(error)}); delete it") from None
        with _passing_failures():
            archive = self._directory()
        member = _usable(archive, name, limit)
        (span,) = spans(archive, [member])
        with _passing_failures():
            data, reason = self._content(archive, member, span, self._hub().read(span.start, span.stop))
        if reason:
            raise TriptychError(reason)
        return data

    def _hub(self) -> RemoteFile:
        """The remote file, which must be the one whose directory is kept.

        Raises:
            TriptychError: it is unavailable, or another one.
        """
        if self._remote is None:
            remote, note = RemoteFile(*self._about), read_json(self._folder / NOTE)
            if (remote.size, remote.etag) != (note["size"], note["etag"]):
                raise TriptychError(f"{self._name} has changed on the hub; delete {self._folder} and run again")
            self._remote = remote
        return self._remote

    def _directory(self) -> zipfile.ZipFile:
        """The archive, of which only the directory is here.

        Raises:
            TriptychError: what is kept of it is damaged.
        """
        if self._archive is None:
            note, path = read_json(self._folder / NOTE), self._folder / DIRECTORY
            tail = path.read_bytes() if path.is_file() else b""
            if sha256_bytes(tail) != note["sha256"]:
                raise TriptychError(f"{path}: damaged; delete {self._folder / NOTE} and run again")
            self._archive = _open_pieces(Pieces(self._name, note["size"], tail))
        return self._archive

    def _open_parts(self) -> None:
        """Open the parts that are not open yet; a damaged one is removed, and its members are fetched again."""
        for path in sorted(self._folder.glob("*.zip")):
            if path in self._parts:
                continue
            try:
                part = self._parts[path] = self._stack.enter_context(zipfile.ZipFile(path))
            except BROKEN as error:
                if refusal(error) is not None:
                    raise
                announce(f"{path}: damaged ({message_of(error)}); its members are fetched again")
                path.unlink(missing_ok=True)
            else:
                self._stored |= {member.filename: (part, member) for member in part.filelist}

    def _keep(self, archive: zipfile.ZipFile, wanted: list[Span]) -> None:
        """Fetch spans, and write their members into parts."""
        hub, progress = self._hub(), _Progress(_bytes(wanted))
        with closing(map_ahead(lambda span: hub.read(span.start, span.stop), wanted, CONNECTIONS)) as fetched:
            for group in _groups(wanted):
                with self._new_part([member.filename for span in group for member in span.members]) as part:
                    for span, data in zip(group, fetched, strict=False):
                        for member in span.members:
                            _write(part, member.filename, *self._content(archive, member, span, data))
                        progress.report(len(data))

    @contextmanager
    def _new_part(self, names: list[str]) -> Iterator[zipfile.ZipFile]:
        """Open a part to write; it is there when the block ends well."""
        with (
            atomic_path(self._folder / f"{sha256_json(names)[:16]}.zip") as temporary,
            zipfile.ZipFile(temporary, "w") as part,
        ):
            yield part

    def _content(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, span: Span, data: bytes) -> tuple[bytes, str]:
        """Give a member's bytes out of its span's, or the reason why there are none; a damaged span is fetched again.

        Raises:
            TriptychError: it cannot be fetched again.
        """
        for again in (False, True):
            archive.fp.window = (span.start, self._hub().read(span.start, span.stop) if again else data)
            try:
                return archive.read(member), ""
            except BROKEN as error:
                if refusal(error) is not None:
                    raise
                reason = f"{member.filename}: cannot be read out of {self._name} ({message_of(error)})"
        return b"", reason


def _keep_directory(remote: RemoteFile, filename: str, folder: Path) -> None:
    """Fetch an archive's directory, and keep it for later runs.

    Raises:
        TriptychError: the archive is unavailable, not a zip archive, or its directory is too large.
    """

    def fetch(start: int, stop: int) -> bytes:
        if stop - start > MAX_DIRECTORY:
            raise TriptychError(f"{filename}: its directory is larger than {_gb(MAX_DIRECTORY)}; refused")
        return remote.read(start, stop)

    pieces = Pieces(filename, remote.size, remote.read(max(0, remote.size - TAIL), remote.size), fetch)
    archive = _open_pieces(pieces)
    start, data = pieces.tail
    tail = data[archive.start_dir - start :]
    with atomic_path(folder / DIRECTORY) as temporary:
        temporary.write_bytes(tail)
    write_record(folder / NOTE, {"size": remote.size, "etag": remote.etag, "sha256": sha256_bytes(tail)})


def _open_pieces(pieces: Pieces) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(pieces)
    except BROKEN as error:
        if refusal(error) is not None:
            raise
        raise TriptychError(
            f"{pieces.name}: not a readable zip archive ({message_of(error)}); check the revision"
        ) from None


@contextmanager
def _passing_failures() -> Iterator[None]:
    """Tell what is wrong with hub or cache from what is wrong with a member, for which its image is rejected.

    Raises:
        OSError: the block raised a TriptychError.
    """
    try:
        yield
    except TriptychError as error:
        raise OSError(errno.EIO, f"not fetched yet, and {error}") from None


def _usable(archive: zipfile.ZipFile, name: str, limit: int) -> zipfile.ZipInfo:
    """Find a member.

    Raises:
        TriptychError: there is none of that name, or it is larger than `limit` bytes.
    """
    member = archive.NameToInfo.get(name)
    if member is None:
        raise TriptychError(f"{Path(archive.filename).name} has no member {name!r}")
    if not fits(member, limit):
        raise TriptychError(_too_large(name, limit))
    return member


def _too_large(name: str, limit: int) -> str:
    return f"{name}: larger than {limit} bytes"


def _write(part: zipfile.ZipFile, name: str, data: bytes = b"", reason: str = "") -> None:
    """Write a member into a part; one that cannot be used is empty, and its comment says why."""
    member = zipfile.ZipInfo(name)
    member.comment = reason[:2000].encode()
    part.writestr(member, data)


def _groups(wanted: list[Span]) -> Iterator[list[Span]]:
    """Cut spans into groups, of which each fills a part."""
    group, size = [], 0
    for span in wanted:
        if group and size + span.stop - span.start > PART:
            yield group
            group, size = [], 0
        group.append(span)
        size += span.stop - span.start
    if group:
        yield group


def _bytes(found: list[Span]) -> int:
    return sum(span.stop - span.start for span in found)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


class _Progress:
    """Lines on how far the fetching is, every few seconds."""

    def __init__(self, wanted: int):
        self.wanted, self.done, self.start = wanted, 0, time.monotonic()
        self.reported = self.start

    def report(self, size: int) -> None:
        self.done += size
        now = time.monotonic()
        if now - self.reported >= PROGRESS_SECONDS or self.done == self.wanted:
            self.reported = now
            rate = self.done / max(now - self.start, 1e-3)
            left = duration((self.wanted - self.done) / max(rate, 1))
            print(f"{_gb(self.done)} of {_gb(self.wanted)}, {rate / 1e6:.1f} MB/s, {left} left", flush=True)
