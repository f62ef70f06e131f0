"""Figures for papers: sizes, fonts, bytes, captions, and that no text of one is cut or meets another."""

import re
from itertools import combinations

import pandas
import pytest
from generated import full_gathered, full_study
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from triptych.report import drawing, rows
from triptych.report.drawing import draw_rows, draw_scaling, look, save, text_width, wrapped
from triptych.report.figures import WIDTHS, Drawn, all_figures, interval_said, write_figures
from triptych.report.results import results
from triptych.tables import occlusion, scaling
from triptych.tables.format import make_table

NAMES = ["1-2-3", "$x_1$ costs 50 % & more", "a-very-long-name-" * 3, "w" * 120, "two\nlines", "é Ω <b>", ""]


def arms(names=NAMES, trained=True):
    return [{"arm": name, "trained": trained, "all_mean": 10.0 + 9 * place} for place, name in enumerate(names)]


def ranked(names=NAMES):
    means = {name: {"mean": 10.0 + 9 * place, "low": 5.0, "high": 99.0} for place, name in enumerate(names)}
    return rows.ranked(arms(names), means)


def swept():
    values = [(0, 40.0), (100, 41.0), (110, 42.0), (1000, 50.0), (30000, 60.0)]
    table = make_table(
        [
            {"sweep": "captions", "setting": "stages.1.max_samples", "value": value, "arm": f"1x{value}", "mean": mean}
            | {"low": mean - 5, "high": mean + 5, "slope_per": "doubling", "slope": 1.0, "questions": 9, "runs": 3}
            for value, mean in values
        ],
        scaling.COLUMNS,
    )
    return table


@pytest.fixture(scope="module")
def figures(world, tmp_path_factory):
    """All figures of a made-up study of full size."""
    study = full_study(world, tmp_path_factory.mktemp("figures") / "results", folds=3, seeds=2)
    gathered = full_gathered(study, 60)
    looked = {"arm": "1-2-3", "questions": 9, "runs": 6, "folds": 3, "seeds": 2, "groups": 4, "pointing": 50.0}
    looked |= {"pointing_low": 40.0, "pointing_high": 60.0, "pointing_random": 10.0, "pointing_centre": 30.0}
    gathered |= {"scaling": swept(), occlusion.NAME: make_table([looked], occlusion.COLUMNS)}
    return all_figures(study, gathered, results(study, gathered))


def texts(figure):
    """The texts of a figure that are seen, with their places in dots."""
    figure.set_dpi(drawing.DOTS)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    seen = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    for axes in figure.axes:  # numbers beyond an axis are not drawn
        for axis, limits in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            for tick in axis.get_major_ticks():
                if not axes.axison or not limits[0] <= tick.get_loc() <= limits[1]:
                    seen = [text for text in seen if text not in (tick.label1, tick.label2)]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in seen]


def assert_readable(figure):
    found = texts(figure)
    assert found
    for text, box in found:
        assert box.x0 >= 0 and box.y0 >= 0, f"{text} is cut"
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, f"{text} is cut"
    for (one, first), (other, second) in combinations(found, 2):
        wide = min(first.x1, second.x1) - max(first.x0, second.x0)
        high = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert wide < 1 or high < 5, f"{one!r} meets {other!r}"


@pytest.mark.parametrize("wide", WIDTHS)
def test_no_text_is_cut_or_meets_another(figures, wide):
    assert set(figures) == {
        *("arms", "differences", "types", "controls", "lookups", "training", "validation", "stability"),
        *("modality", "content_type", "probes", "occlusion", "scaling", "leak"),
    }
    for figure in figures.values():
        drawn = figure.draw(wide)
        assert drawn.get_figwidth() == pytest.approx(wide / 25.4) and drawn.get_figheight() < 10.5
        assert_readable(drawn)


@pytest.mark.parametrize("wide", WIDTHS)
def test_names_of_any_kind_are_drawn_as_they_are(wide):
    figure = draw_rows([ranked()], wide)
    assert_readable(figure)
    shown = [text for text, _ in texts(figure)]
    joined = " ".join(shown)
    assert "$x_1$" in joined and "two lines" in joined and "Ω" in joined and any(text.endswith("…") for text in shown)


def test_a_sweeps_labels_do_not_meet_and_its_0_stands_apart():
    figure = draw_scaling(scaling.by_sweep(swept()), 84, 1)
    assert_readable(figure)
    labels = [text for text, _ in texts(figure)]
    assert {"0", "100", "1000", "30000"} <= set(labels) and "110" not in labels
    line = figure.axes[1].lines[0]
    assert len(line.get_xdata()) == 4, "the line leaves 0 out"


def test_files_have_their_size_and_fonts_and_the_same_bytes_again(tmp_path):
    for name in ("a", "b"):
        save(draw_rows([ranked()], 84), tmp_path / name)
    for kind in ("svg", "pdf", "png"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes(), kind
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"CreationDate" not in pdf
    box = re.search(rb"/MediaBox \[([^\]]+)\]", pdf)[1].split()
    assert float(box[2]) == pytest.approx(84 / 25.4 * 72, abs=0.1)
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "<text" not in svg and "font-family" not in svg and "<path" in svg
    assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) == pytest.approx(84 / 25.4 * 72, abs=0.1)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == pytest.approx(84 / 25.4 * 300, abs=1) and image.info["dpi"][0] == pytest.approx(
            300, abs=1
        )


def test_letters_are_7_to_9_points_high_in_every_figure(figures):
    for name in ("arms", "validation", "probes", "scaling"):
        figure = figures[name].draw(84)
        sizes = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()}
        assert sizes and all(7 <= size <= 9 for size in sizes), name


def test_series_differ_without_colour():
    assert len({look(index)["marker"] for index in range(7)}) == 7
    assert len({(*look(index).values(), str(drawing.DASHES[index % len(drawing.DASHES)])) for index in range(40)}) == 40


def test_captions_say_what_a_figure_rests_on_and_what_its_interval_is(figures, tmp_path):
    for name, figure in figures.items():
        assert ("3 folds" in figure.caption and "interval" in figure.caption) or name == "stability", name
    own = {"training", "validation", "stability", "probes", "occlusion", "leak"}
    for name in set(figures) - own:
        assert "n = 60 held-out questions of medical about 12 images of 6 subjects" in figures[name].caption, name
        assert "3 folds, 2 seeds" in figures[name].caption, name
    assert "n = at most 12 images" in figures["probes"].caption and "n = 60 questions" in figures["leak"].caption
    assert "n = 9 questions about 4 images" in figures["occlusion"].caption
    assert "The first 3 of 7 schedules are drawn" in figures["lookups"].caption
    one = {"arms": figures["arms"]}
    write_figures(tmp_path, one)
    page = (tmp_path / "figures.md").read_text(encoding="utf-8")
    assert page.startswith("# Figures\n") and "n = 60 held-out questions" in page and "empty boxes" not in page
    for path in re.findall(r"\]\(([^)]+)\)", page):
        assert (tmp_path / path).exists()
    assert len(list(tmp_path.glob("arms-*"))) == 6


def test_with_one_run_the_interval_is_that_of_images_alone(world, tmp_path):
    study = full_study(world, tmp_path, folds=3, seeds=1)
    found = results(study, full_gathered(study, 60))
    assert "clustered by run" in interval_said(found)
    assert "say nothing of other trainings" in interval_said(found.model_copy(update={"folds": 1}))


def test_signs_that_the_font_lacks_are_told(tmp_path):
    write_figures(tmp_path, {"arms": Drawn("Arms", "", lambda wide: draw_rows([ranked(["赤い"])], wide))})
    assert "Drawn as empty boxes: Glyph 36196" in (tmp_path / "figures.md").read_text(encoding="utf-8")


def test_lines_of_a_name_fit_and_at_most_three_stand():
    for text in NAMES:
        lines = wrapped(text, 20)
        assert 1 <= len(lines) <= 3 and all(text_width(line) <= 20 or len(line) == 1 for line in lines), text
    assert wrapped("majority-per-question", 20) == ["majority-per-", "question"]
    assert wrapped("short", 20) == ["short"] and wrapped("", 20) == [""]


def test_intervals_of_types_stay_within_what_is_possible():
    typed = [{"first": "a", "second": "b", "aspect": "content_type", "value": None, "questions": 3, "effect": 60.0}]
    typed[0] |= {"low": -200.0, "high": 90.0}
    typed.append({**typed[0], "questions": 2, "high": 300.0})
    typed.append({**typed[0], "first": "a", "second": "c", "value": "other pair"})
    chart = rows.types(typed)
    assert (chart["axis"].low, chart["axis"].high) == (-100, 100)
    assert [(row["name"], row["text"]) for row in chart["rows"]] == [
        ("(none) (3)", "+60.0 (-200.0 to +90.0)"),
        ("(none) (2)", "+60.0 (nothing ruled out)"),
    ]
    assert rows.types([]) is None and rows.occlusion(pandas.DataFrame()) is None
