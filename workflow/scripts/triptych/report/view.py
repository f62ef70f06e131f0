"""The page: its parts filled in with what was gathered, as one file that loads nothing and runs only its own script."""

import base64
import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import yaml

from triptych import __version__
from triptych.config.arms import BASELINES, CONTROLS, HELD_OUT
from triptych.config.study import Study
from triptych.report import answer, curves, data_pictures, rows
from triptych.report.charts import CONTENT, CURVES, HEALTH, numbers
from triptych.report.gallery import first_shown, packed
from triptych.report.limitations import DRAWN
from triptych.report.results import Results, images_asked, results
from triptych.report.svg import graph, key
from triptych.tables import by_type, calibration, occlusion, scaling
from triptych.tables.comparison import about
from triptych.tables.format import rows_of
from triptych.tables.gold_outcome import left_out
from triptych.tables.wording import narrowed

PARTS = Path(__file__).parent / "page"
SCRIPTS = ("page.js", "gallery.js", "compare.js")
TABLES = ("schedules", "controls", by_type.NAME, calibration.NAME, "captions", "leak")  # shown as they are
CITATION = "The Triptych developers: Triptych: staged training of vision-language models, version {}"


def named(text: str) -> markupsafe.Markup:
    """Write text as HTML, with what stands between backticks as code."""
    return markupsafe.Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(markupsafe.escape(text))))


def as_json(value: object) -> markupsafe.Markup:
    """Write JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return markupsafe.Markup(text.replace("<", "\\u003c"))


def part(name: str) -> str:
    """Read a style or script of the page, without indentation and lines that are comments."""
    lines = (PARTS / name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.strip() for line in lines if line.strip() and not line.strip().startswith("//"))


def policy_hash(text: str) -> str:
    """Give the name by which the page's policy allows one style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _cards(gathered: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    image, lookup, power = answer.cards(gathered, names)
    image["chart"] = rows.lost(image["rows"], names[:1], name_arms=False, with_p=False)
    lookup["chart"] = rows.above(lookup["rows"][:3], with_p=False)
    power["chart"] = rows.power(gathered["comparison"])
    return [image, lookup, power]


def _first_screen(study: Study, gathered: Mapping[str, Any], found: Results) -> dict[str, Any]:
    comparison, arms = gathered["comparison"], rows_of(gathered["schedules"])
    ends = None
    if comparison:
        first, second = comparison[0]["first"], comparison[0]["second"]
        ends = (f"{second} better", f"{first} better")
    return {
        "results": found,
        "images_asked": images_asked(found),
        "primary": rows.differences(comparison[:1]),
        "ends": ends,
        "cards": _cards(gathered, study.grid.schedules),
        "ranking": rows.ranked(arms, gathered["accuracies"]),
        "date": f"{datetime.date.today():%-d %B %Y}",
        "version": __version__,
        "citation": CITATION.format(__version__),
        "untrained": {arm["arm"]: BASELINES[arm["arm"]].answer for arm in arms if arm["arm"] in BASELINES},
    }


def _training(study: Study, gathered: Mapping[str, Any]) -> dict[str, Any]:
    arms, compared = study.grid.schedules, study.grid.compared
    charts = curves.charts(gathered["curves"], study.grid.used_stages, arms)
    drawn = [name for name, chart in charts.items() if curves.has_lines(chart)]
    return {
        "curve_charts": charts,
        "curves_shown": [name for name, *_ in CURVES if name in drawn],
        "health_shown": [name for name, *_ in HEALTH if name in drawn],
        "validation_by_image": study.settings.folds.validation_unit == "image",
        "single_values": [chart["what"] for name, chart in charts.items() if name not in drawn],
        "curve_legend": [(key(index), arm) for index, arm in curves.named(gathered["curves"], arms).items()],
        "beside": curves.with_and_without(gathered["curves"], [study.grid.lineage[arm] for arm in compared[:2]]),
    }


def _node(entry: Mapping[str, Any]) -> dict[str, Any]:
    hours = "" if entry["hours"] is None else f", {entry['hours']:.2f} h"
    devices = f", {', '.join(entry['devices'])}" if entry["devices"] else ""
    lines = [f"{entry['data']}: {' and '.join(entry['parts']) or 'nothing'}"]
    lines.append(f"{entry['jobs']} run{'s' if entry['jobs'] != 1 else ''}{hours}{devices}")
    lines.append(f"sha256 {entry['hash'][:12]}" if entry["hash"] else "")
    return {"name": entry["prefix"], "parent": entry["parent"], "lines": lines}


def _evidence(study: Study, gathered: Mapping[str, Any]) -> dict[str, Any]:
    arms = [*study.grid.schedules, *DRAWN]
    audit, provenance, pairs = gathered["audit"], gathered["provenance"], gathered["comparison"]
    contents = {aspect: rows.contents(gathered["by_content"], aspect, arms) for aspect in CONTENT}
    return {
        "difference_chart": rows.differences(pairs),
        "types_chart": rows.types(rows_of(gathered[by_type.NAME])),
        "occlusion_chart": rows.occlusion(gathered[occlusion.NAME]),
        "occlusion_about": occlusion.ABOUT,
        "lost_chart": rows.lost(gathered["lost"], study.grid.schedules),
        "above_chart": rows.above(gathered["above_lookups"]),
        "content_charts": {aspect: chart for aspect, chart in contents.items() if chart},
        "probe_charts": rows.probes(gathered["probe"]),
        "scaling_charts": rows.scaled(scaling.by_sweep(gathered["scaling"])),
        "scaling_said": scaling.said(gathered["scaling"], study.grid.drawn_once),
        "leak_chart": rows.leaks(gathered["leak"]),
        "kept_rows": data_pictures.kept(audit["data"]),
        "balance_charts": data_pictures.balance(audit["balance"]),
        "overlap_rows": data_pictures.overlaps(audit["fold_overlaps"]),
        "overlap_legend": data_pictures.OVERLAP_LEGEND,
        "origin_graph": graph([_node(entry) for entry in provenance["trained_from"]]),
        "numbers": numbers(gathered, study.grid.schedules, DRAWN),
        "configuration": yaml.safe_dump(provenance["settings"], sort_keys=False, allow_unicode=True),
        "left_out": left_out(pairs),
        "calibration_headings": calibration.HEADINGS,
        "holds_for": " ".join(about(pairs, HELD_OUT)[1:]) if pairs else "",
    }


def templates() -> jinja2.Environment:
    """Give the parts of the page, with the filters that write its numbers."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"named": named, "points": rows.signed, "percent": rows.percent}
    environment.tests["narrowed"] = lambda row: narrowed(row["low"], row["high"])
    return environment


def render(study: Study, gathered: Mapping[str, Any]) -> tuple[str, Results]:
    """Write the page of what `gather` found, and give the numbers of its `results.json`."""
    found, controls = results(study, gathered), gathered["controls"]
    style, script = part("page.css"), "\n".join(map(part, SCRIPTS))
    page = (
        templates()
        .get_template("page.html.j2")
        .render(
            **(gathered | {name: rows_of(gathered[name]) for name in TABLES}),
            **_first_screen(study, gathered, found),
            **_training(study, gathered),
            **_evidence(study, gathered),
            views={view: control for view, control in CONTROLS.items() if controls[f"{view}_mean"].notna().any()},
            shown_questions=first_shown(gathered["browser"], len(study.grid.schedules)),
            style=markupsafe.Markup(style),
            style_hash=policy_hash(style),
            script=markupsafe.Markup(script),
            script_hash=policy_hash(script),
            questions=as_json(packed(gathered["browser"])),
            thumbnails_json=as_json(gathered["thumbnails"]),
            results_json=as_json(found.model_dump(mode="json")),
        )
    )
    return page, found
