"""What each image shows and says: OpenMoji drawings placed on a ground, described in English.

A scene is data: it is decided here, and drawn in `openmoji`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from triptych.data.sources.embedded.english import article, noun_phrase
from triptych.data.sources.embedded.openmoji_names import Concept
from triptych.errors import TriptychError
from triptych.utils.seeds import derive_seed, stable_order

COLOURS = {
    "white": (255, 255, 255), "light grey": (222, 222, 222), "cream": (255, 246, 220), "beige": (236, 222, 196),
    "pale yellow": (255, 248, 184), "yellow": (250, 219, 94), "peach": (255, 214, 186), "orange": (248, 176, 104),
    "pink": (252, 200, 214), "light red": (242, 154, 148), "lavender": (220, 208, 242), "purple": (190, 160, 224),
    "light blue": (188, 218, 246), "blue": (120, 170, 230), "turquoise": (132, 212, 210), "grey": (176, 180, 186),
    "light green": (196, 234, 172), "green": (136, 198, 120), "light brown": (212, 180, 146),
}  # fmt: skip

_GROUNDS = {  # pattern -> its words
    "plain": "{0} background", "fade": "background fading from {0} to {1}", "mottled": "mottled {0} background",
    "stripes": "background of {0} and {1} stripes", "checks": "{0} and {1} checked background",
    "dots": "{0} background with {1} dots"}  # fmt: skip

# Where drawings may stand: phrase and (left, top, right, bottom) in parts of the image's side.
_CORNERS = tuple((f"in the {row} {column} corner", (x, y, x + 0.5, y + 0.5))
                 for y, row in ((0, "top"), (0.5, "bottom"))
                 for x, column in ((0, "left"), (0.5, "right")))  # fmt: skip

_MIDDLE = (("in the middle", (0.1, 0.1, 0.9, 0.9)), ("in the middle", (0.25, 0.25, 0.75, 0.75)))
_SIDES = (("on the left", (0, 0.2, 0.5, 0.8)), ("on the right", (0.5, 0.2, 1, 0.8)))
_ENDS = (("at the top", (0.2, 0, 0.8, 0.5)), ("at the bottom", (0.2, 0.5, 0.8, 1)))
_THIRDS = ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1))

_LAYOUTS = {  # name -> (how often, places); "one" takes one of its places
    "one": (30, (*_SIDES, *_ENDS, *_CORNERS, *_MIDDLE * 4)),
    "several": (20, (("", (0, 0, 1, 1)),)),
    "row of two": (15, tuple((place, (box[0], 0, box[2], 1)) for place, box in _SIDES)),
    "column of two": (15, tuple((place, (0, box[1], 1, box[3])) for place, box in _ENDS)),
    "row of three": (6, tuple((place, (a, 0.1, b, 0.9)) for (a, b), place in
                              zip(_THIRDS, ("on the left", "in the middle", "on the right"), strict=True))),
    "column of three": (6, tuple((place, (0.1, a, 0.9, b)) for (a, b), place in
                                 zip(_THIRDS, ("at the top", "in the middle", "at the bottom"), strict=True))),
    "corners": (8, _CORNERS)}  # fmt: skip

_THREE = "{0} {at0}, {1} {at1} and {2} {at2}"
_TWO = ("{0} {at0} and {1} {at1}", "{1} {at1} and {0} {at0}", "{0} {at0} and {1} {at1} of {ground}")

_FORMS = {
    "in the middle": ("{0} on {ground}", "a picture of {0}", "{0} in the middle of {ground}"),
    "one": ("{0} {at0} of {ground}", "a drawing of {0} {at0}", "{0} on {ground}, {at0}"),
    "several": ("{0} on {ground}", "a drawing of {0}", "there are {0} on {ground}"),
    "in a row": ("{0} in a row", "{0} in a row on {ground}", "{0} on {ground}"),
    "in a column": ("{0} in a column", "{0} in a column on {ground}", "{0} on {ground}"),
    "row of two": (*_TWO, "{0} to the left of {1} on {ground}", "{1} to the right of {0}"),
    "column of two": (*_TWO, "{0} above {1} on {ground}", "{1} below {0}"),
    "row of three": (_THREE, "from left to right: {0}, {1} and {2}", "{0}, {1} and {2} from left to right"),
    "column of three": (_THREE, "from top to bottom: {0}, {1} and {2}", "{0} above {1} and {2} on {ground}"),
    "corners": ("{0} {at0}, {1} {at1}, {2} {at2} and {3} {at3}",
                "four drawings on {ground}: {0} {at0}, {1} {at1}, {2} {at2} and {3} {at3}")}  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """One drawing in an image: the place it stands at, and `left`, `top` and `side` of its box in pixels."""

    concept: Concept
    place: str
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Scene:
    """One image before it is drawn; `ground` is a pattern and the names of its two colours."""

    index: int
    split: str
    ground: tuple[str, str, str]
    placements: tuple[Placement, ...]
    caption: str


def split_concepts(
    everything: Sequence[Concept], seed: int, validation_fraction: float
) -> tuple[tuple[Concept, ...], tuple[Concept, ...]]:
    """Divide the concepts into those for training and those held out, by a stable hash of their codes.

    Raises:
        TriptychError: the fraction is not in [0, 0.5].
    """
    if not 0 <= validation_fraction <= 0.5:
        raise TriptychError(f"validation fraction is {validation_fraction}; choose one from 0 to 0.5")
    ordered = sorted(everything, key=lambda concept: stable_order(seed, "openmoji concept", concept.code))
    # Four is the most that one image shows.
    count = max(len(_CORNERS), round(len(ordered) * validation_fraction)) if validation_fraction else 0
    return tuple(ordered[count:]), tuple(ordered[:count])


def compose(
    seed: int, index: int, train: Sequence[Concept], held_out: Sequence[Concept], fraction: float, pixels: int = 224
) -> Scene:
    """Decide what image `index` shows and says; a pure function of its arguments."""
    # Validation images are spread evenly, so every beginning of the set has its share of them.
    validation = int((index + 1) * fraction + 0.5) > int(index * fraction + 0.5)
    rng = random.Random(derive_seed(seed, "openmoji scene", str(index)))
    ground = (rng.choice(["plain", "plain", *_GROUNDS]), *rng.sample(sorted(COLOURS), 2))
    layout = rng.choices(list(_LAYOUTS), [often for often, _ in _LAYOUTS.values()])[0]
    places = [rng.choice(_LAYOUTS["one"][1])] if layout == "one" else _LAYOUTS[layout][1]
    counts = [1] * len(places)
    if layout == "several":
        counts = [rng.choice((2, 3, 4))]
    elif len(places) == 2:
        counts = rng.choice(([1, 1], [1, 1], [1, 2], [2, 1], [2, 2]))
    form, phrases, words, placements = layout, [], {}, []
    chosen = rng.sample(held_out if validation else train, len(places))
    for number, (concept, count, (place, region)) in enumerate(zip(chosen, counts, places, strict=True)):
        cells, arrangement = _cells(rng, region, count)
        if layout == "several":
            form = place = arrangement or layout
        placements += [_stand(rng, concept, place, cell, pixels) for cell in cells]
        phrases.append(noun_phrase(concept.name, count))
        words[f"at{number}"] = place
    form = "in the middle" if layout == "one" and words["at0"] == "in the middle" else form
    backdrop = _GROUNDS[ground[0]].format(*ground[1:])
    caption = rng.choice(_FORMS[form]).format(*phrases, **words, ground=f"{article(backdrop)} {backdrop}")
    return Scene(index, "validation" if validation else "train", ground, tuple(placements), caption)


def _cells(rng: random.Random, region: tuple, count: int) -> tuple[list[tuple], str]:
    """Choose `count` cells of a grid over `region`, in parts of the side, and name their arrangement if it has one."""
    left, top, right, bottom = region
    if count == 1:
        return [region], ""
    shapes = [(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3) if rows * columns >= count]
    least = {shape: min((right - left) / shape[1], (bottom - top) / shape[0]) for shape in shapes}
    # Cells under a third of the side make drawings too small to be told apart.
    rows, columns = rng.choice([shape for shape in shapes if least[shape] > min(max(least.values()), 0.33) - 1e-9])
    name = {(1, count): "in a row", (count, 1): "in a column"}.get((rows, columns), "")
    x, y = (right - left) / columns, (bottom - top) / rows
    chosen = [divmod(cell, columns) for cell in sorted(rng.sample(range(rows * columns), count))]
    return [(left + c * x, top + r * y, left + (c + 1) * x, top + (r + 1) * y) for r, c in chosen], name


def _stand(rng: random.Random, concept: Concept, place: str, cell: tuple, pixels: int) -> Placement:
    """A drawing of varied size at a varied spot of its cell."""
    left, top, right, bottom = (edge * pixels for edge in cell)
    side = int(min(right - left, bottom - top) * rng.uniform(0.7, 0.95))
    x, y = rng.random() * (right - left - side), rng.random() * (bottom - top - side)
    return Placement(concept, place, int(left + x), int(top + y), side)
