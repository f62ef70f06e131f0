"""Settings of the documentation's site, which `make docs` builds from the pages in this folder."""

import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commit() -> str:
    """The commit that the site describes; nothing where there is no repository."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return f", commit {asked.stdout.strip()}" if asked.returncode == 0 else ""


project = "Triptych"
author = "The Triptych developers"
copyright = f"{author}, MIT licence"
version = release = PROJECT["version"]
html_title = f"Triptych {release}{commit()}"

extensions = ["myst_parser", "sphinx_copybutton"]
myst_heading_anchors = 4  # links such as evaluation.md#probes, as code hosts make them
myst_enable_extensions = ["dollarmath"]
nitpicky = True  # with -W, a link that leads nowhere stops the build
exclude_patterns = ["_build"]
pygments_style = "friendly"
pygments_dark_style = "monokai"

html_theme = "furo"
html_show_sphinx = False
html_copy_source = False
