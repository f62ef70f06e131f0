"""Upload an export to the hub, or say with which command it is uploaded."""

import shlex
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError

from triptych.config.texts import check_hub_id
from triptych.download.huggingface import said_by_hub
from triptych.errors import TriptychError, refusal


def check_repository(repo: str) -> None:
    """Refuse what is no name of a repository of the hub with its owner.

    Raises:
        TriptychError: it is none.
    """
    try:
        check_hub_id(repo)
    except ValueError as error:
        raise TriptychError(f"--push: {error}") from None
    if "/" not in repo:
        raise TriptychError(f"--push: must name the owner, too (owner/name), not {repo!r}")


def push(folder: Path, repo: str) -> str:
    """Upload an export to a repository, which is private where it is new, and tell in a line what was done.

    Where HF_HUB_OFFLINE is set or there is no token nothing is sent, and the line has the command that uploads it.

    Args:
        folder: of the export.
        repo: owner/name.

    Raises:
        TriptychError: the hub refuses, or cannot be reached.
    """
    command = shlex.join(["hf", "upload", repo, str(folder), ".", "--private"])
    if is_offline_mode():
        return f"not uploaded, because HF_HUB_OFFLINE is set; where there is internet, after `hf auth login`: {command}"
    if get_token() is None:
        return f"not uploaded, because there is no token; after `hf auth login`: {command}"
    try:
        api = HfApi()
        api.create_repo(repo, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of Triptych")
    except TriptychError as error:
        reason = str(error)
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:  # hf_xet's are RuntimeErrors
        if refusal(error) is not None:
            raise
        reason = said_by_hub(error)
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
            reason += "; is the token (HF_TOKEN) of an account that may write there?"
    else:
        return f"uploaded: {commit.commit_url}"
    raise TriptychError(f"--push {repo}: cannot be uploaded ({reason}); the folder is complete, so later: {command}")
