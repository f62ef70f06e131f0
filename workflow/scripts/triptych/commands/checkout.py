"""Where the repository is, with its Snakefile and profiles, for commands that run in a study's own folder."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from triptych.errors import TriptychError

ROOT = Path(__file__).parents[4]
SNAKEFILE = ROOT / "Snakefile"
PROFILE = "profiles/local"  # of `triptych run`, unless another is named
PROFILE_FILES = ("profile.yaml", "config.yaml")


def profile_path(name: str) -> Path:
    """Give the folder of a profile: below this folder, the repository, or where Snakemake looks in the user's home.

    Args:
        name: of the folder, or of a file in it.

    Raises:
        TriptychError: no profile is there.
    """
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for path in (Path(name), ROOT / name, home / "snakemake" / name):
        if path.is_file():
            return path.parent
        if any((path / file).is_file() for file in PROFILE_FILES):
            return path
    raise TriptychError(f"{name}: no profile is there; name a folder with {' or '.join(PROFILE_FILES)}")


def snakemake_command(profile: str | None, directory: Path, others: Sequence[str]) -> list[str]:
    """Give the command line that runs Snakemake here, also in a folder of a study, which has no Snakefile.

    Args:
        profile: its name; None for a run without one.
        directory: working folder.
        others: further options.

    Raises:
        TriptychError: the profile is not there.
    """
    command = [sys.executable, "-m", "snakemake", "--directory", str(directory)]
    if profile:
        command += ["--profile", str(profile_path(profile))]
    named = any(word in ("-s", "--snakefile") or word.startswith("--snakefile=") for word in others)
    if not named and not Path("Snakefile").exists() and not Path("workflow/Snakefile").exists():
        command += ["--snakefile", str(SNAKEFILE)]
    return [*command, *others]
