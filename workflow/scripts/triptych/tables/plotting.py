"""Colours, and figures as SVG and PNG."""

from pathlib import Path

import altair
import vl_convert

from triptych.io.atomic import atomic_path, write_text

# Okabe and Ito's palette: told apart with any kind of colour vision.
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]


def write_figure(drawn: altair.TopLevelMixin, svg: Path) -> None:
    """Write a chart as SVG, and as PNG beside it."""
    specification = drawn.to_json()
    write_text(svg, vl_convert.vegalite_to_svg(specification))
    with atomic_path(svg.with_suffix(".png")) as temporary:
        temporary.write_bytes(vl_convert.vegalite_to_png(specification, scale=2))
