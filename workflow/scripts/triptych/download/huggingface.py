"""Data sets and models of the Hugging Face hub, each at a pinned commit; nothing downloaded is ever executed."""

import errno
import hashlib
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import httpx2
from huggingface_hub import (
    get_cached_repo_tree,
    get_hf_file_metadata,
    get_token,
    hf_hub_download,
    hf_hub_url,
    list_repo_files,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from triptych.download import hub_http
from triptych.errors import TriptychError, message_of, refusal
from triptych.io.atomic import atomic_directory, link_or_copy

Answer = TypeVar("Answer")
Kind = Literal["model", "dataset"]  # of a repository

# What a broken archive raises: places before its beginning are an OSError, and fields cut short a struct.error.
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError, struct.error)

# What weights, configurations and tokenizers are kept in; pickles and code are not among them.
SAFE_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "tokenizer.model")  # weights, configuration, tokenizer

# Weights in formats that are never opened: most are pickles.
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")

hub_http.install()


class HubFiles(NamedTuple):
    """Files of one repository: their names, or patterns in which `*` stands for any characters."""

    kind: Kind
    repo: str
    revision: str
    patterns: tuple[str, ...]

    def matching(self, names: Iterable[str]) -> list[str]:
        """Give those of a repository's file names that are meant."""
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.patterns)]


def model_folder(files: HubFiles, out: Path, cache: Path) -> None:
    """Put files of a model into the folder `out`, which is replaced when all are there.

    They are downloaded as `download` does, and have a second name in `out` (a copy where that cannot be).

    Raises:
        TriptychError: a pattern could match a pickle or code, the files are unavailable, or there are no safetensors.
    """
    repo, revision = files.repo, files.revision
    check_revision(repo, revision)
    for pattern in files.patterns:
        if not pattern.endswith(SAFE_SUFFIXES):
            raise TriptychError(f"pattern {pattern!r} for {repo}: must end in one of {', '.join(SAFE_SUFFIXES)}")
    wanted = list(files.patterns)
    snapshot = Path(
        ask(
            lambda: snapshot_download(repo, revision=revision, cache_dir=_store(cache), allow_patterns=wanted),
            repo,
            ", ".join(wanted),
            revision,
        )
    )
    # The user's own store may hold other files of this model, too.
    found = {path.relative_to(snapshot).as_posix(): path for path in sorted(snapshot.rglob("*")) if path.is_file()}
    names = files.matching(found)
    if not has_weights(names):
        raise TriptychError(without_weights(files, cache))
    for name in names:
        _require_right_bytes(found[name], repo)
    with atomic_directory(out) as temporary:
        for name in names:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(found[name].resolve(), temporary / name)


def has_weights(names: Iterable[str]) -> bool:
    """Whether there are weights among a model's files."""
    return any(name.endswith(".safetensors") for name in names)


def without_weights(files: HubFiles, cache: Path) -> str:
    """Say that a model of the hub has no safetensors, and what it has instead, where the hub tells."""
    try:
        others = list_files(files._replace(patterns=OTHER_WEIGHTS), cache)
    except TriptychError:
        others = []
    return f"{files.repo} has no safetensors at {files.revision}" + (
        only_other_weights(others) or "; choose a model or revision that has them"
    )


def only_other_weights(others: Sequence[str]) -> str:
    """Give the end of an error on a model whose weights are `others`, files that are never opened; "" for none."""
    if not others:
        return ""
    return (
        f", only {', '.join(others[:3])}, which is never opened (a pickle can run code); choose a revision that has "
        "them (on the hub often a pull request), or convert a copy once, as docs/models.md shows"
    )


def check_revision(repo: str, revision: str) -> None:
    """Refuse a revision that may change its meaning.

    Raises:
        TriptychError: it is not a full commit id.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise TriptychError(
            f"revision {revision!r} of {repo}: give the full commit id of 40 hexadecimal digits, "
            "so that the same bytes are used every time"
        )


def download(repo: str, filename: str, revision: str, cache: Path) -> Path:
    """Get one file of a data set; kept under HF_HOME if the user has set it, else in the project's cache.

    For a file that is stored already the hub is not asked; a new one is compared with the hash that the hub gives.

    Raises:
        TriptychError: the file is unavailable or arrived damaged.
    """
    check_revision(repo, revision)
    if stored := stored_file(repo, filename, revision, cache):
        return stored
    path = Path(
        ask(
            lambda: hf_hub_download(repo, filename, repo_type="dataset", revision=revision, cache_dir=_store(cache)),
            repo,
            filename,
            revision,
        )
    )
    _require_right_bytes(path, repo)
    return path


def stored_file(repo: str, filename: str, revision: str, cache: Path, kind: Kind = "dataset") -> Path | None:
    """Find a file where it was downloaded to; None where it is not."""
    path = try_to_load_from_cache(repo, filename, cache_dir=_store(cache), revision=revision, repo_type=kind)
    return Path(path) if isinstance(path, str) else None


def hub_folder(cache: Path) -> Path:
    """Give the folder that downloads are kept in."""
    return _store(cache) or Path(HF_HUB_CACHE)


def _store(cache: Path) -> Path | None:
    """The folder that downloads are kept in; None for the one of the user, which the hub's client knows."""
    return None if {"HF_HOME", "HF_HUB_CACHE"} & os.environ.keys() else cache / "hub"


def _require_right_bytes(path: Path, repo: str) -> None:
    """Compare a stored file with its hash; the hub's client compares sizes alone.

    Raises:
        TriptychError: they differ; the file is removed.
    """
    if _removed_as_damaged(path):
        raise TriptychError(f"{repo}: {path.name} differs from its hash on the hub: damaged on its way; run again")


@cache
def stop_if_damaged(path: Path) -> None:
    """Tell a stored file that was damaged later from one that is published so; to be called where reading it fails.

    Raises:
        OSError: it differs from its hash on the hub, and is removed.
    """
    if _removed_as_damaged(path):
        raise OSError(errno.EIO, f"{path.name} differs from its hash on the hub: damaged since it was stored, removed")


def _removed_as_damaged(path: Path) -> bool:
    """Compare a stored file with its hash, by which the store names it, and remove it where they differ.

    Where the store has no links, or another server names files in another way, there is nothing to compare with.
    """
    stored = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", stored.name):
        return False
    plain, sha256 = hashlib.sha1(), hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % stored.stat().st_size)
    # Large files are named by SHA-256, small ones as git does.
    hashes = (sha256,) if len(stored.name) == 64 else (git, plain)
    with stored.open("rb") as file:
        while chunk := file.read(1 << 20):
            for one in hashes:
                one.update(chunk)
    if stored.name in {one.hexdigest() for one in hashes}:
        return False
    stored.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    return True


def list_files(files: HubFiles, cache: Path) -> list[str]:
    """List the names of those files that the repository has, sorted; for a model that is stored the hub is not asked.

    Raises:
        TriptychError: the hub does not say.
    """
    kind, repo, revision, _ = files
    check_revision(repo, revision)
    try:
        known = get_cached_repo_tree(repo, repo_type=kind, revision=revision, cache_dir=_store(cache))
        names = [file.path for file in known]
    except CachedRepoTreeNotFoundError:
        asked = "the list of files"
        names = ask(lambda: list_repo_files(repo, repo_type=kind, revision=revision), repo, asked, revision)
    return files.matching(sorted(names))


def file_size(files: HubFiles, name: str) -> int:
    """Ask the hub for the size of a file in bytes; nothing is downloaded.

    Raises:
        TriptychError: the file is unavailable.
    """
    kind, repo, revision, _ = files
    url = hf_hub_url(repo, name, repo_type=kind, revision=revision)
    found = ask(lambda: get_hf_file_metadata(url), repo, name, revision)
    if found.commit_hash != revision or found.size is None:
        raise TriptychError(
            f"{repo}: cannot get {name} at {revision}: {ENDPOINT} answers as no hub does (commit {found.commit_hash}, "
            f"size {found.size}); check HF_ENDPOINT and the proxy"
        )
    return found.size


def ask(request: Callable[[], Answer], repo: str, files: str, revision: str) -> Answer:
    """Make a request to the hub; any failure becomes one error that says what failed and what to do.

    Raises:
        TriptychError: the request failed.
    """
    try:
        return request()
    except TriptychError as error:
        reason = str(error)
    # All that hf_xet cannot do is a RuntimeError.
    except (OSError, ValueError, RuntimeError, EntryNotFoundError, httpx2.HTTPError) as error:
        if refusal(error) is not None:
            raise
        reason = _reason(error, repo)
    raise TriptychError(f"{repo}: cannot get {files} at {revision}: {reason}")


def said_by_hub(error: Exception) -> str:
    """Give the first line of what the hub, or its client, says of a failure, without secrets."""
    said = getattr(error, "server_message", None) or str(error)
    return hub_http.without_secrets((said.strip().splitlines() or [type(error).__name__])[0])


def _reason(error: Exception, repo: str) -> str:
    """What failed, and what to do."""
    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # which the client hides behind that there is nothing in its cache, either
    said = said_by_hub(error)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    # Only the address tells a data set from a model.
    data = isinstance(error, HfHubHTTPError) and "/datasets/" in str(error.response.url)
    page = f"{ENDPOINT}/{'datasets/' if data else ''}{repo}"
    match error:
        case GatedRepoError() if get_token() is None:
            return f"access is restricted; accept its conditions on {page} and set HF_TOKEN to a token of that account"
        case GatedRepoError():
            return (
                f"access is restricted; accept its conditions on {page} with the account of your token (HF_TOKEN), or "
                "wait until its owner has agreed"
            )
        case RevisionNotFoundError():
            return "the repository has no such revision; check the revision"
        case EntryNotFoundError() if not isinstance(error, LocalEntryNotFoundError):
            return "no such file at this revision; check the revision"
        case HfHubHTTPError() if status == 401 and "Invalid credentials" in said:
            return "the hub does not know the token; correct or unset HF_TOKEN (or run `hf auth login` again)"
        case RepositoryNotFoundError() | HfHubHTTPError() if status in (401, 404):
            return "not found on the hub; check the name, or if it is private, set HF_TOKEN to a token that may read it"
        case HfHubHTTPError() if status == 403:
            return f"access is denied ({said}); see {page}, or give your token (HF_TOKEN) the right to read it"
        case HfHubHTTPError():
            return f"the hub answers {status} ({said}); run again later"
        case httpx2.RemoteProtocolError() | httpx2.ReadError():
            return f"the connection breaks off again and again ({said}); run again"
        case httpx2.TransportError() | OfflineModeIsEnabled() | LocalEntryNotFoundError():
            remedy = (
                "on a machine without internet, first run the same step where there is internet (on a cluster: the "
                "login node), with HF_HOME set to a folder that both machines see"
            )
            return f"the hub cannot be reached ({said}); {remedy}"
        case RuntimeError():
            return f"Xet, the hub's storage of large files, fails ({said}); set HF_HUB_DISABLE_XET=1 for plain HTTP"
    return f"{said}; run again"


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a downloaded archive.

    Raises:
        TriptychError: it is not a readable zip archive.
    """
    try:
        return zipfile.ZipFile(path)
    except BROKEN as error:
        if refusal(error) is not None:
            raise
        raise TriptychError(f"{path}: not a readable zip archive; delete the file and run again") from None


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Read a member of a downloaded archive; no more than its declared size is ever read.

    Raises:
        TriptychError: it is damaged, or written in a way that is not read, such as encrypted.
    """
    try:
        return archive.read(member)
    except BROKEN as error:
        if refusal(error) is not None:
            raise
        raise TriptychError(
            f"{member.filename}: cannot be read out of {Path(archive.filename).name} ({message_of(error)}); delete the "
            "archive in the cache, so that it is downloaded again"
        ) from None
