"""Captioned drawings: same bytes every time, nested sets, held-out concepts, captions that say what is drawn."""

import io
from itertools import combinations

import pytest
from conftest import CACHE
from PIL import Image
from triptych.config.datasets import OpenMojiCaptions
from triptych.data.sources.embedded import openmoji, openmoji_names, openmoji_scenes
from triptych.data.sources.embedded.english import add_articles, article, noun_phrase, plural
from triptych.errors import TriptychError

FRACTION = 0.1
# Where the middle of a drawing has to be, in parts of the side, for each place a caption names.
SPANS = {"left": (0, 0.5), "top": (0, 0.5), "middle": (0.3, 0.7), "right": (0.5, 1), "bottom": (0.5, 1)}


@pytest.fixture(scope="module")
def everything():
    return openmoji_names.concepts(openmoji.drawings(CACHE))


@pytest.fixture(scope="module")
def parts(everything):
    return openmoji_scenes.split_concepts(everything, 3, FRACTION)


@pytest.fixture(scope="module")
def scenes(parts):
    return [openmoji_scenes.compose(3, index, *parts, FRACTION) for index in range(3000)]


def test_there_are_many_well_named_concepts(everything):
    names = [concept.name for concept in everything]
    assert 900 <= len(names) == len(set(names)) <= 1400
    assert {"red apple", "ambulance", "slice of pizza", "pair of scissors", "polar bear"} <= set(names)
    assert not [name for name in names if ":" in name or "_" in name or "skin tone" in name or "flag:" in name]


def settings(size, seed=3, **changes):
    return OpenMojiCaptions(source="openmoji", sizes=[size], seed=seed, validation_fraction=FRACTION, **changes)


def images(chosen, items):
    with openmoji.reader(chosen, CACHE) as read:
        return [read(item.place) for item in items]


def test_listings_are_the_same_twice_and_small_ones_begin_large_ones():
    small, large = (list(openmoji.listing(settings(size), CACHE)) for size in (20, 60))
    assert small == list(openmoji.listing(settings(20), CACHE)) == large[: len(small)]
    assert len(small) == 22 + openmoji.RESERVE and len({item.id for item in large}) == len(large)
    assert (small[7].id, small[7].place) == ("openmoji-000007", "7")
    assert {item.split for item in small} == {"train", "validation"}
    other = list(openmoji.listing(settings(20, seed=4), CACHE))
    assert {item.id for item in other} == {item.id for item in small}
    assert not {item.stamp for item in other} & {item.stamp for item in small}


def test_images_depend_on_seed_and_number_alone():
    items = list(openmoji.listing(settings(20), CACHE))[:12]
    drawn = images(settings(20), items)
    assert images(settings(60), items[::-1])[::-1] == drawn
    assert not set(images(settings(20, seed=4), items)) & set(drawn)


def test_images_show_what_the_listing_says(parts):
    item = list(openmoji.listing(settings(20), CACHE))[5]
    scene = openmoji_scenes.compose(3, 5, *parts, FRACTION)
    assert (item.caption, item.split) == (scene.caption, scene.split)
    assert images(settings(20), [item]) == [openmoji.draw(scene, openmoji.drawings(CACHE), 3, openmoji.PIXELS)]


@pytest.mark.parametrize("pixels", [64, 224])
def test_images_have_the_size_asked_for(parts, pixels):
    for index in range(8):
        scene = openmoji_scenes.compose(0, index, *parts, FRACTION, pixels)
        with Image.open(io.BytesIO(openmoji.draw(scene, openmoji.drawings(CACHE), 0, pixels))) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (pixels, pixels))


def test_held_out_concepts_are_in_validation_images_alone(everything, parts, scenes):
    train, held_out = parts
    assert len(held_out) == round(FRACTION * len(everything))
    assert not {c.code for c in train} & {c.code for c in held_out}
    shown = {"train": set(), "validation": set()}
    for scene in scenes:
        shown[scene.split] |= {placement.concept for placement in scene.placements}
    assert shown["train"] <= set(train) and shown["validation"] <= set(held_out)
    for count in (50, 1000, 3000):
        assert abs(sum(s.split == "validation" for s in scenes[:count]) - FRACTION * count) <= 1


def test_no_validation_where_none_is_asked_for(everything):
    train, held_out = openmoji_scenes.split_concepts(everything, 0, 0.0)
    assert len(train) == len(everything) and not held_out
    assert {openmoji_scenes.compose(0, i, train, held_out, 0.0).split for i in range(100)} == {"train"}
    with pytest.raises(TriptychError, match=r"0 to 0\.5"):
        openmoji_scenes.split_concepts(everything, 0, 0.7)


def test_captions_count_and_name_what_is_drawn(scenes):
    for scene in scenes:
        counts = {}
        for placement in scene.placements:
            key = (placement.concept.name, placement.place)
            counts[key] = counts.get(key, 0) + 1
        assert 1 <= len(scene.placements) <= 4
        for (name, _), count in counts.items():
            assert noun_phrase(name, count) in scene.caption
        assert "{" not in scene.caption and "  " not in scene.caption


def test_captions_name_the_ground(scenes):
    named = [scene for scene in scenes if "background" in scene.caption]
    assert len(named) > len(scenes) / 3
    for scene in named:
        pattern, first, second = scene.ground
        assert first in scene.caption
        assert (second in scene.caption) or pattern in ("plain", "mottled")
    assert {scene.ground[0] for scene in scenes} == {"plain", "fade", "stripes", "checks", "dots", "mottled"}


def test_drawings_stand_where_the_caption_says_and_never_overlap(scenes):
    for scene in scenes:
        boxes = [(p.left, p.top, p.left + p.side, p.top + p.side) for p in scene.placements]
        assert all(min(box) >= 0 and max(box) <= 224 for box in boxes)
        for a, b in combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        for placement in scene.placements:
            x, y = ((start + placement.side / 2) / 224 for start in (placement.left, placement.top))
            words = placement.place.split()
            if "middle" in words:
                assert any(SPANS["middle"][0] <= part <= SPANS["middle"][1] for part in (x, y))
            for word in {"left", "right"} & set(words):
                assert SPANS[word][0] <= x <= SPANS[word][1]
            for word in {"top", "bottom"} & set(words):
                assert SPANS[word][0] <= y <= SPANS[word][1]


def test_rows_columns_and_orders_are_true(scenes):
    seen = set()
    for scene in scenes:
        lefts, tops = [p.left for p in scene.placements], [p.top for p in scene.placements]
        for words, values in (("in a row", lefts), ("left to right", lefts), ("in a column", tops)):
            if words in scene.caption:
                seen.add(words)
                assert values == sorted(values)
        for words, axis, forward in (
            (" to the left of ", "left", True),
            (" to the right of ", "left", False),
            (" above ", "top", True),
            (" below ", "top", False),
        ):
            if words in scene.caption:
                seen.add(words)
                groups = {}
                for p in scene.placements:
                    groups.setdefault(p.concept.name, []).append(p)
                # The phrase before the words is of the group that stands further left or up, or for the opposite
                # words of the other.
                said, other = scene.caption.split(words)
                first = next(name for name, drawn in groups.items() if said == noun_phrase(name, len(drawn)))
                rest = [name for name in groups if name != first]
                assert all(noun_phrase(name, len(groups[name])) in other for name in rest)
                own = [getattr(p, axis) for p in groups[first]]
                theirs = [getattr(p, axis) for name in rest for p in groups[name]]
                assert max(own) < min(theirs) if forward else min(own) > max(theirs)
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        *(("apple", "an"), ("dog", "a"), ("hourglass", "an"), ("unicorn", "a"), ("euro banknote", "a")),
        *(("umbrella", "an"), ("X-ray image", "an"), ("one-piece swimsuit", "a"), ("upside-down face", "an")),
        ("American football", "an"),
    ],
)
def test_articles(words, expected):
    assert article(words) == expected


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("red apple", "red apples"),
        ("wolf", "wolves"),
        ("strawberry", "strawberries"),
        ("monkey", "monkeys"),
        ("tropical fish", "tropical fish"),
        ("sandwich", "sandwiches"),
        ("slice of pizza", "slices of pizza"),
        ("person running", "people running"),
        ("person mountain biking", "people mountain biking"),
        ("woman breast-feeding a baby", "women breast-feeding a baby"),
        ("pair of people holding hands", "pairs of people holding hands"),
        ("winking face with a tongue", "winking faces with a tongue"),
        ("racing car", "racing cars"),
        ("post office", "post offices"),
        ("old woman", "old women"),
        ("hand pointing up", "hands pointing up"),
        ("hammer crossed with a pick", "hammers crossed with a pick"),
        ("computer mouse", "computer mice"),
        ("mouse trap", "mouse traps"),
        ("levitating person in a suit", "levitating people in a suit"),
    ],
)
def test_plurals(one, many):
    assert plural(one) == many


def test_missing_articles_are_added():
    assert add_articles("face with medical mask") == "face with a medical mask"
    assert add_articles("frowning face with open mouth") == "frowning face with an open mouth"
    assert add_articles("cloud with rain") == "cloud with rain"
