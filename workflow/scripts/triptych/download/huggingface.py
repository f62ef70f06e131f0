"""Data sets and models of the Hugging Face hub, each at a pinned commit; nothing downloaded is ever executed."""

import lzma
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from triptych.errors import TriptychError, message_of, refusal
from triptych.io.atomic import atomic_directory

Answer = TypeVar("Answer")

# What a broken archive raises: places before its beginning are an OSError, and fields cut short a struct.error.
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError, struct.error)

# What weights, configurations and tokenizers are kept in; pickles and code are not among them.
SAFE_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")


def model_folder(repo: str, revision: str, out: Path, patterns: list[str]) -> None:
    """Put the files of a model that match `patterns` into the folder `out`, which is replaced when all are there.

    Raises:
        TriptychError: a pattern could match a pickle or code, the files are unavailable, or there are no safetensors.
    """
    check_revision(repo, revision)
    for pattern in patterns:
        if not pattern.endswith(SAFE_SUFFIXES):
            raise TriptychError(f"pattern {pattern!r} for {repo}: must end in one of {', '.join(SAFE_SUFFIXES)}")
    # The folder starts empty: in one with files the hub client would pass off an unfinished download as done.
    with atomic_directory(out) as temporary:
        ask(
            lambda: snapshot_download(repo, revision=revision, local_dir=temporary, allow_patterns=patterns),
            repo,
            ", ".join(patterns),
            revision,
        )
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the hub client's own notes
        names = [path.name for path in temporary.rglob("*") if path.is_file()]
        if strange := [name for name in names if not name.endswith(SAFE_SUFFIXES)]:
            raise TriptychError(f"{repo} sent files that were not requested: {', '.join(strange)}; refused")
        if not any(name.endswith(".safetensors") for name in names):
            raise TriptychError(f"{repo} has no safetensors at {revision}; choose a model or revision that has them")


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

    For a file that is stored already the hub is not asked.

    Raises:
        TriptychError: the file is unavailable.
    """
    check_revision(repo, revision)
    own = {"HF_HOME", "HF_HUB_CACHE"} & os.environ.keys()
    kept_in = None if own else cache / "hub"
    return Path(
        ask(
            lambda: hf_hub_download(repo, filename, repo_type="dataset", revision=revision, cache_dir=kept_in),
            repo,
            filename,
            revision,
        )
    )


def list_files(repo: str, revision: str) -> list[str]:
    """List the names of all files of a data set, sorted.

    Raises:
        TriptychError: the hub does not say.
    """
    check_revision(repo, revision)
    return sorted(
        ask(lambda: list_repo_files(repo, repo_type="dataset", revision=revision), repo, "the list of files", revision)
    )


def ask(request: Callable[[], Answer], repo: str, files: str, revision: str) -> Answer:
    """Make a request to the hub; any failure becomes one error that says what failed and what to do.

    Raises:
        TriptychError: the request failed.
    """
    try:
        return request()
    except GatedRepoError:
        reason, remedy = "access is restricted", "accept its conditions on its page of the hub and set HF_TOKEN"
    except (RepositoryNotFoundError, RevisionNotFoundError):
        reason, remedy = "not found on the hub", "check the name and the revision"
    except (OSError, ValueError, EntryNotFoundError, httpx2.HTTPError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, FileNotFoundError):
            reason, remedy = "no such file at this revision", "check the revision"
        else:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = f"the hub cannot be reached or the file not be stored ({first_line})"
            remedy = (
                "on a machine without internet, first run the same step where there is internet "
                "(on a cluster: the login node), with HF_HOME set to a folder that both machines see"
            )
    raise TriptychError(f"{repo}: cannot get {files} at {revision}: {reason}; {remedy}") from None


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
