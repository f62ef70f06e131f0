"""Step: the report, `report.html`, its numbers, `results.json`, and its figures for papers."""

import argparse
from pathlib import Path

from triptych.config.paths import RESULTS
from triptych.config.settings import Settings
from triptych.config.study import Study
from triptych.errors import run_step
from triptych.io.atomic import write_text
from triptych.report.figures import all_figures, write_figures
from triptych.report.gather import gather
from triptych.report.results import as_text
from triptych.report.view import render


def main() -> None:
    """Write the report, its numbers and its figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="settings of the study as JSON")
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="the study's tables")
    parser.add_argument("--out", type=Path, required=True, help="HTML file to write")
    parser.add_argument("--figures", type=Path, required=True, help="folder for the figures")
    arguments = parser.parse_args()
    study = Study.of(Settings.model_validate_json(arguments.settings))
    gathered = gather(study, {path.stem for path in arguments.tables})
    page, found = render(study, gathered)
    figures = all_figures(study, gathered, found)
    write_figures(arguments.figures, figures)
    write_text(arguments.out.parent / RESULTS, as_text(found))
    write_text(arguments.out, page)
    print(f"{arguments.out}: {len(page.encode()) / 1e6:.1f} MB, {len(figures)} figures", flush=True)


if __name__ == "__main__":
    run_step(main)
