"""Where the repository is, with its Snakefile and profiles, for commands that run in a study's own folder."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from triptych.errors import TriptychError

ROOT = Path(__file__).parents[4]
SNAKEFILE = ROOT / "Snakefile"
PROFILE = "profiles/local"  # of `triptych run`, unless another is named
NO_PROFILE = "none"
PROFILE_FILE = re.compile(r"(profile|config)(?:\.v(\d+)\+)?\.yaml")  # also for Snakemake of some version and newer


def profile_path(name: str) -> Path:
    """Give the folder or file of a profile: below this folder, the repository, or where Snakemake looks in the home.

    Args:
        name: of the folder or file; `none`, which Snakemake takes for no profile, stays.

    Raises:
        TriptychError: no profile is there.
    """
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for path in (Path(name), ROOT / name, home / "snakemake" / name):
        if path.is_file() or (path.is_dir() and any(PROFILE_FILE.fullmatch(file.name) for file in path.iterdir())):
            return path
    if name == NO_PROFILE:
        return Path(name)
    raise TriptychError(f"{name}: no profile is there; name a folder with profile.yaml, such as profiles/local")


def with_profiles_found(options: Sequence[str]) -> list[str]:
    """Give Snakemake's options with every profile by the path at which it is.

    Raises:
        TriptychError: a profile is not there.
    """
    found, named = [], False
    for word in options:
        if named:
            found.append(str(profile_path(word)))
        elif word.startswith("--profile="):
            found.append(f"--profile={profile_path(word.partition('=')[2])}")
        else:
            found.append(word)
        named = not named and word == "--profile"
    return found


def snakemake_command(options: Sequence[str]) -> list[str]:
    """Give the command line that runs Snakemake here, also in a folder of a study, which has no Snakefile."""
    command = [sys.executable, "-m", "snakemake"]
    named = any(word in ("-s", "--snakefile") or word.startswith("--snakefile=") for word in options)
    if not named and not Path("Snakefile").exists() and not Path("workflow/Snakefile").exists():
        command += ["--snakefile", str(SNAKEFILE)]
    return [*command, *options]
