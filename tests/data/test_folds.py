"""Folds: no group on both sides, everything held out once, the test part untouched."""

from collections import Counter

import numpy as np
import pytest
from triptych.config.folds import Folds
from triptych.data import folds
from triptych.data.folds import group_images, summarise
from triptych.errors import TriptychError


def assign(rows, settings):
    """Folds of question rows whose images' groups are the rows' own."""
    return folds.assign(rows, {row["image_id"]: row["group"] for row in rows}, settings)


def questions(groups=30, per_group=5):
    return [
        {
            "question_id": f"q{group}-{index}",
            "image_id": f"i{group}-{index // 2}",
            "group": f"g{group}",
            "modality": ["CT", "MRI"][group % 2],
            "answer_type": ["OPEN", "CLOSED"][index % 2],
            "split": "test" if group >= groups - 3 else "train" if group % 4 else "validation",
        }
        for group in range(groups)
        for index in range(per_group)
    ]


@pytest.mark.parametrize("unit", ["group", "image"])
def test_no_group_is_both_trained_on_and_held_out(unit):
    rows = questions()
    settings = Folds(dataset="medical", number=4, validation_unit=unit)
    owner = {row["question_id"]: row for row in rows}
    parts = assign(rows, settings)
    held_out = Counter(row["question_id"] for row in parts if row["part"] == "test")
    assert held_out == Counter(row["question_id"] for row in rows if row["split"] != "test")
    for fold in {row["fold"] for row in parts}:
        groups, images = {}, {}
        for row in parts:
            if row["fold"] == fold:
                groups.setdefault(row["part"], set()).add(owner[row["question_id"]]["group"])
                images.setdefault(row["part"], set()).add(owner[row["question_id"]]["image_id"])
        assert set(groups) == {"train", "validation", "test"}
        assert not groups["test"] & (groups["train"] | groups["validation"])
        assert not images["train"] & images["validation"]
        if unit == "group":
            assert not groups["train"] & groups["validation"]


def test_folds_do_not_depend_on_the_order_of_the_table():
    settings = Folds(dataset="medical", number=3)
    assert assign(questions(), settings) == assign(questions()[::-1], settings)


def test_modalities_are_spread_over_the_folds():
    rows = questions(groups=63)
    summary = summarise(rows, assign(rows, Folds(dataset="medical", number=3)))
    shares = [fold["test"]["modalities"]["CT"] / fold["test"]["questions"] for fold in summary.values()]
    assert max(shares) - min(shares) < 0.15


def test_too_few_groups_is_an_error():
    with pytest.raises(TriptychError, match="3 folds need at least 4 groups"):
        assign(questions(groups=6), Folds(dataset="medical", number=3))


def test_a_fold_without_a_part_is_an_error_and_rare_kinds_are_not():
    rows = questions(groups=6, per_group=1)  # three groups of one question for the folds
    with pytest.raises(
        TriptychError, match=r"fold. has nothing for train; there are only 3 groups.*lower folds.number"
    ):
        assign(rows, Folds(dataset="medical", number=2))
    rows = [{**row, "modality": row["question_id"]} for row in questions(groups=12, per_group=1)]
    assert len({row["fold"] for row in assign(rows, Folds(dataset="medical", number=3))}) == 3


def pictures(number=8):
    """Images of four subjects, two each; 0 and 5 are the same file, 1 and 6 look alike."""
    thumbnails = np.random.default_rng(0).integers(0, 200, (number, 32, 32), np.uint8)
    thumbnails[5] = thumbnails[0]
    thumbnails[6] = thumbnails[1] + 20
    rows = [{"id": f"i{n}", "sha256": f"hash{0 if n == 5 else n}", "group": f"s{n // 2}"} for n in range(number)]
    return rows, thumbnails


@pytest.mark.parametrize(
    ("group", "together"),
    [
        ("image", [{"i0", "i5"}]),
        ("subject", [{"i0", "i1", "i4", "i5"}, {"i2", "i3"}, {"i6", "i7"}]),
        ("near-duplicate-cluster", [{"i0", "i1", "i4", "i5", "i6", "i7"}, {"i2", "i3"}]),
    ],
)
def test_copies_subjects_and_look_alikes_stay_together_as_asked(group, together):
    groups = group_images(*pictures(), Folds(dataset="medical", group=group))
    found = {}
    for image, owner in groups.items():
        found.setdefault(owner, set()).add(image)
    assert [members for members in found.values() if len(members) > 1] == together


def test_rows_are_cut_apart_only_where_the_leak_is_to_be_measured():
    rows = questions()
    image = {row["question_id"]: row["image_id"] for row in rows}
    parts = assign(rows, Folds(dataset="medical", number=3, group="row"))
    fold = [row for row in parts if row["fold"] == "fold0"]
    seen = {image[row["question_id"]] for row in fold if row["part"] == "train"}
    leaked = [image[row["question_id"]] in seen for row in fold if row["part"] == "test"]
    assert sum(leaked) / len(leaked) > 0.3


def test_the_official_parts_are_one_fold():
    rows = questions()
    settings = Folds(dataset="medical", number=1, group="official")
    parts = {row["question_id"]: row["part"] for row in assign(rows, settings)}
    official = {row["question_id"]: row["split"] for row in rows}
    assert set(parts) == {name for name, split in official.items() if split != "test"}
    assert {name for name, part in parts.items() if part == "test"} == {
        name for name, split in official.items() if split == "validation"
    }
    assert Counter(parts.values())["validation"] > 0


def test_an_image_in_two_official_parts_is_refused():
    rows = questions()
    for row in rows:
        row["image_id"] = row["group"] = "one" if row["group"] in ("g0", "g1") else row["group"]
    with pytest.raises(TriptychError, match=r"group: official: 1 images.*such as one"):
        assign(rows, Folds(dataset="medical", number=1, group="official"))


@pytest.mark.parametrize(("number", "group"), [(1, "image"), (3, "official")])
def test_one_fold_is_the_official_parts_and_no_other(number, group):
    with pytest.raises(ValueError, match="number must be 1 with group official"):
        Folds(dataset="medical", number=number, group=group)
