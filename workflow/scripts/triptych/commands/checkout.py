"""Where the repository is, with its Snakefile and profiles, for commands that run in a study's own folder."""

from pathlib import Path

ROOT = Path(__file__).parents[4]
SNAKEFILE = ROOT / "Snakefile"


def profile_path(name: str) -> Path:
    """Give the path of a profile: below this folder or, where it is not there, below the repository."""
    return ROOT / name if not Path(name).exists() and (ROOT / name).is_dir() else Path(name)
