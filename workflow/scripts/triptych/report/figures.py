"""The report's charts as files for papers, in the width of one column and of two, with a caption for each.

What is drawn are the charts of the page (`rows`, `curves`): no number is computed here.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from triptych.config.paths import FIGURES
from triptych.config.study import Study
from triptych.evaluate.statistics import points
from triptych.io.atomic import write_text
from triptych.report import curves, rows
from triptych.report.charts import CONTENT
from triptych.report.drawing import draw_curves, draw_rows, draw_scaling, save
from triptych.report.limitations import DRAWN
from triptych.report.results import Results, images_asked
from triptych.tables import by_type, occlusion, scaling
from triptych.tables.format import rows_of
from triptych.utils.markdown import plain

WIDTHS = (84, 174)  # mm: one column of a page, and two
MOST_ROWS = 24  # of the points above look-ups, where there are many schedules


@dataclass(frozen=True)
class Drawn:
    """A figure: what it shows, its caption, and what draws it in a width in mm."""

    title: str
    caption: str
    draw: Callable[[int], Figure]


def counted(count: int, one: str) -> str:
    """Write a number of things: '1 seed', '1,200 images'."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def rests_on(found: Results) -> str:
    """Say what the numbers of a study rest on: questions, images, folds and seeds."""
    return (
        f"n = {counted(found.questions, 'held-out question')} of {found.dataset} about {images_asked(found)}; "
        f"{counted(found.folds, 'fold')}, {counted(len(found.seeds), 'seed')}."
    )


def interval_said(found: Results) -> str:
    """Say what the intervals of arms, differences and controls are."""
    if found.folds * len(found.seeds) == 1:
        return "Lines: 95 % bootstrap intervals over images or subjects; they say nothing of other trainings."
    return (
        "Lines: 95 % intervals for other runs and other images like these (t, clustered by run, or by fold where "
        "seeds of it share what they are compared with, and by image or subject, widened where training parts overlap)."
    )


def _of_rows(title: str, caption: str, charts: Sequence[Mapping[str, Any] | None]) -> Drawn | None:
    drawn = [chart for chart in charts if chart]
    return Drawn(title, caption, lambda wide: draw_rows(drawn, wide, 2 if wide > WIDTHS[0] else 1)) if drawn else None


def _of_arms(gathered: Mapping[str, Any], schedules: Sequence[str], found: Results) -> dict[str, Drawn | None]:
    """Draw what arms reach, and their differences from each other."""
    comparison, typed = gathered["comparison"], rows_of(gathered[by_type.NAME])
    end = f"{interval_said(found)} {rests_on(found)}"
    alone = " Intervals of look-ups and classifiers, which have one run here, are over images or subjects alone."
    alone = alone if found.folds == 1 < len(found.seeds) else ""
    single = " Small circles: single runs." if found.folds * len(found.seeds) > 1 else ""
    margin = points(comparison[0]["equivalence_margin"]) if comparison else ""
    above = gathered["above_lookups"]
    drawn = schedules[: max(1, MOST_ROWS * len(schedules) // max(1, len(above)))]
    first = "" if len(drawn) == len(schedules) else f" The first {len(drawn)} of {len(schedules)} schedules are drawn."
    pair = "".join(f"{row['first']} minus {row['second']}" for row in typed[:1])
    return {
        "arms": _of_rows(
            "Exact match of all arms",
            "Means over all answers. Bold and filled: trained arms; open: look-ups and classifiers. Arms answer the "
            f"same questions: whether two differ is not seen from whether their intervals overlap. {end}{alone}",
            [rows.ranked(rows_of(gathered["schedules"]), gathered["accuracies"])],
        ),
        "differences": _of_rows(
            "Differences between schedules",
            f"Points of exact match, paired by run and question.{single} Grey: differences of up to {margin} count as "
            f"none. {end}",
            [rows.differences(comparison)],
        ),
        "types": _of_rows(
            "Differences by type of question",
            f"{pair}, in points of exact match, for each type alone (in brackets its number of questions). Intervals "
            f"are not corrected for their number, and may reach beyond the picture. {end}",
            [rows.types(typed)],
        ),
        "controls": _of_rows(
            "Points lost with other images",
            "Exact match with each question's own image minus that with another, over the questions asked. Intervals "
            f"are not corrected for their number; p, in the wide form, is. {end}",
            [rows.lost(gathered["lost"], schedules)],
        ),
        "lookups": _of_rows(
            "Points above look-ups and classifiers",
            "Exact match of schedules minus that of arms without a language model, same folds and questions. Intervals "
            f"are not corrected for their number; p, in the wide form, is.{first} {end}",
            [rows.above([row for row in above if row["arm"] in drawn])],
        ),
    }


def _of_training(gathered: Mapping[str, Any], study: Study, found: Results) -> dict[str, Drawn | None]:
    """Draw the metrics of epochs, a panel for each stage."""
    arms = study.grid.schedules
    charts = curves.charts(gathered["curves"], study.grid.used_stages, arms)
    keys = curves.named(gathered["curves"], arms)
    end = (
        "Epoch 0 is before training. A stage that schedules share is drawn once, under the first of them. "
        f"{counted(found.folds, 'fold')}, {counted(len(found.seeds), 'seed')}."
    )

    def several(title: str, said: str, names: Sequence[str]) -> Drawn | None:
        metrics = [charts[name] for name in names if name in charts]
        if not metrics:
            return None
        return Drawn(
            title, f"{said} {end}", lambda wide: draw_curves(metrics, keys, wide, 5 if wide > WIDTHS[0] else 3)
        )

    mean = "Lines: means over runs (folds and seeds); bands: the range of the runs, not an interval."
    forced = "Accuracy: each token of an answer is predicted behind the right ones (teacher forcing)."
    parts = (
        "Validation data are neither trained on nor held out, and may have chosen the epoch: these are not the "
        f"questions of other figures. {forced}"
    )
    health = (
        "Gradient norms and loss spikes: the maximum of all runs; norms of image tokens: their mean, with the range."
    )
    return {
        "training": several("Training loss and accuracy", f"{mean} {forced}", ("training_loss", "training_accuracy")),
        "validation": several(
            "Validation loss and accuracy", f"{mean} {parts}", ("validation_loss", "validation_accuracy")
        ),
        "stability": several("Stability of training", health, ("gradient_norms", "token_norms", "loss_spikes")),
    }


def _of_content(gathered: Mapping[str, Any], schedules: Sequence[str], found: Results) -> dict[str, Drawn | None]:
    """Draw exact match by what images and questions are about, probes, occlusion, curves of scale and leaking folds."""
    by_content, arms = gathered["by_content"], [*schedules, *DRAWN]
    probed, occluded, leaky = (rows_of(gathered[name]) for name in ("probe", occlusion.NAME, "leak"))
    sweeps = scaling.by_sweep(gathered["scaling"])
    drawn = {
        aspect: _of_rows(
            f"Exact match by {aspect.replace('_', ' ')}",
            "Means over runs, without intervals or tests: small differences, and any on few questions, show nothing. "
            f"In brackets the number of questions. {rests_on(found)}",
            [rows.contents(by_content, aspect, arms)],
        )
        for aspect in CONTENT
    }
    if probed:
        most = {name: max(row[name] or 0 for row in probed) for name in ("images", "folds", "seeds", "probe_seeds")}
        drawn["probes"] = _of_rows(
            "Probes of image tokens before and after projection",
            "Macro-F1 on held-out images; answers: those of the schedules themselves. Small circles: shuffled labels, "
            "which is chance level. Lines: 95 % bootstrap intervals over images or subjects, not over trainings. "
            f"n = at most {counted(most['images'], 'image')}; {counted(most['folds'], 'fold')}, "
            f"{counted(most['seeds'], 'seed')}, {counted(most['probe_seeds'], 'seed')} of each probe.",
            rows.probes(gathered["probe"]),
        )
    if occluded:
        row = occluded[0]
        drawn["occlusion"] = _of_rows(
            "Where schedules look: the pointing game",
            f"{occlusion.ABOUT} n = {counted(row['questions'], 'question')} about {row['groups']:,} images or "
            f"subjects; {counted(row['folds'], 'fold')}, {counted(row['seeds'], 'seed')}.",
            [rows.occlusion(gathered[occlusion.NAME])],
        )
    if sweeps:
        said = " ".join(map(scaling.sentence, sweeps.values()))
        caption = f"Means over runs; lines: 95 % intervals, not corrected for their number. {said} {rests_on(found)}"
        drawn["scaling"] = Drawn(
            "Curves of scale", caption, lambda wide: draw_scaling(sweeps, wide, 2 if wide > WIDTHS[0] else 1)
        )
    if leaky:
        drawn["leak"] = _of_rows(
            "Points added by leaking folds",
            "Exact match above that on the strictest folds, for the same questions and arm. Lines: 95 % bootstrap "
            "intervals over images or subjects, not over trainings or other cuts into folds. "
            f"n = {counted(leaky[0]['questions'], 'question')}; "
            f"{counted(leaky[0]['folds'], 'fold')} of each kind, {counted(max(1, leaky[0]['seeds'] or 1), 'seed')}.",
            [rows.leaks(gathered["leak"])],
        )
    return drawn


def all_figures(study: Study, gathered: Mapping[str, Any], found: Results) -> dict[str, Drawn]:
    """Give the figures that there are data for, by name.

    Args:
        study: the study.
        gathered: by `gather`.
        found: its numbers, for captions.
    """
    schedules = study.grid.schedules
    drawn = _of_arms(gathered, schedules, found) | _of_training(gathered, study, found)
    drawn |= _of_content(gathered, schedules, found)
    return {name: figure for name, figure in drawn.items() if figure}


def write_figures(folder: Path, figures: Mapping[str, Drawn]) -> None:
    """Write figures as SVG, PDF and PNG in both widths, and last their captions."""
    parts = [
        "# Figures",
        f"Each figure is there in the width of one column ({WIDTHS[0]} mm) and of two ({WIDTHS[1]} mm), as PDF with "
        "its fonts, as SVG with letters as outlines, and as PNG (300 dots an inch). Letters are 7 to 8 points high: "
        "include figures at their own size.",
    ]
    for name, figure in figures.items():
        missing: set[str] = set()
        for wide in WIDTHS:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                save(figure.draw(wide), folder / f"{name}-{wide}mm")
            missing |= {str(warning.message) for warning in caught if "missing from" in str(warning.message)}
        files = ", ".join(f"`{name}-{wide}mm`" for wide in WIDTHS)
        parts += [f"## {figure.title}", f"![{figure.title}]({name}-{WIDTHS[1]}mm.svg)", plain(figure.caption)]
        parts += [f"Files: {files} (.svg, .pdf, .png)"]
        parts += [f"Drawn as empty boxes: {plain(line)}" for line in sorted(missing)]
    write_text(folder / Path(FIGURES).name, "\n\n".join(parts) + "\n")
