"""Step: the report, `report.html`, and its figures as SVG and PNG for a paper."""

import argparse
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jinja2
import markupsafe
import pandas
import vl_convert
import yaml

from triptych.config.arms import CONTROLS
from triptych.config.settings import Settings
from triptych.config.study import Study
from triptych.errors import run_step
from triptych.io.atomic import write_text
from triptych.report.charts import CURVES, HEALTH, all_charts, numbers
from triptych.report.gather import BLIND, LOOKUP, gather
from triptych.tables import by_type, calibration
from triptych.tables.format import rows_of
from triptych.tables.gold_outcome import left_out
from triptych.tables.plotting import write_figure

TEMPLATE = Path(__file__).parent / "page.html.j2"
TABLES = ("schedules", "controls", by_type.NAME, calibration.NAME, "captions", "leak")  # shown as they are
BUNDLE = "window.vegaEmbed = vegaEmbed;"


def answer(comparison: Sequence[Mapping], arms: pandas.DataFrame) -> str:
    """Answer the study's question in a sentence or two: the first verdict, or what the only schedule reaches."""
    if comparison:
        return comparison[0]["verdict"]
    row = arms[arms["trained"]].iloc[0]
    return f"{row['arm']} answers {row['all_mean']:.1f} % of {row['questions']} held-out questions correctly."


def named(text: str) -> markupsafe.Markup:
    """Write text as HTML, with what stands between backticks as code."""
    return markupsafe.Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(markupsafe.escape(text))))


def as_json(value: object) -> str:
    """Write JSON that may stand inside a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def render(study: Study, made: Collection[str]) -> tuple[str, dict]:
    """Render the page, and give it with its charts by name; `made` names the study's tables."""
    gathered = gather(study, made)
    arms, controls = study.grid.schedules, gathered["controls"]
    charts = all_charts(gathered, study.grid.used_stages, arms, [BLIND, LOOKUP])
    specifications = {name: chart.to_dict() for name, (chart, _) in charts.items()}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["named"] = named
    environment.filters["points"] = lambda value: "" if value is None else f"{value:+.1f}"
    environment.filters["percent"] = lambda value: "" if value is None else f"{value:.1f}"
    browser = {**gathered["browser"], "thumbnails": gathered["thumbnails"]}
    tables = {name: rows_of(gathered[name]) for name in TABLES}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        **(gathered | tables),
        calibration_headings=calibration.HEADINGS,
        left_out=left_out(gathered["comparison"]),
        views={view: control for view, control in CONTROLS.items() if controls[f"{view}_mean"].notna().any()},
        answer=answer(gathered["comparison"], gathered["schedules"]),
        words={name: what for name, (_, what) in charts.items()},
        numbers=numbers(gathered, arms, [BLIND, LOOKUP]),
        curves_shown=[name for name, *_ in CURVES if name in charts],
        health_shown=[name for name, *_ in HEALTH if name in charts],
        bundle=markupsafe.Markup(vl_convert.javascript_bundle(BUNDLE).replace("</script", "<\\/script")),
        specifications=markupsafe.Markup(as_json(specifications)),
        questions=markupsafe.Markup(as_json(browser)),
        configuration=yaml.safe_dump(gathered["provenance"]["settings"], sort_keys=False, allow_unicode=True),
    )
    return page, {name: chart for name, (chart, _) in charts.items()}


def main() -> None:
    """Write the report and its figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="settings of the study as JSON")
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="the study's tables")
    parser.add_argument("--out", type=Path, required=True, help="HTML file to write")
    parser.add_argument("--figures", type=Path, required=True, help="folder for the figures")
    arguments = parser.parse_args()
    study = Study.of(Settings.model_validate_json(arguments.settings))
    page, charts = render(study, {path.stem for path in arguments.tables})
    for name, chart in charts.items():
        if name != "probe":  # which is there already, with its table
            white = chart.configure(background="white", font="sans-serif")
            write_figure(white, arguments.figures / f"{name}.svg")
    write_text(arguments.out, page)
    print(f"{arguments.out}: {len(page.encode()) / 1e6:.1f} MB, {len(charts)} charts", flush=True)


if __name__ == "__main__":
    run_step(main)
