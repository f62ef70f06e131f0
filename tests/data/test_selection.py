"""Tables of millions of rows: the order of a choice, and what is written, are those of lists, in less memory."""

import random
import tracemalloc

import pytest
from conftest import chosen, write_slake
from triptych.config.datasets import SlakeFolderVqa
from triptych.data.fetch import TABLES, fetch, tabulate
from triptych.data.prepare import write_dataset
from triptych.data.sources import slake_folder
from triptych.data.sources.base import Item, Reject, Selection
from triptych.errors import TriptychError
from triptych.io.parquet import read_table, write_table
from triptych.utils.seeds import stable_order


def items(number, seed=0):
    """Items of which some have one path and caption, some one id, and some both."""
    generator = random.Random(seed)
    captions = ["a", "肝脏", "line\nbreak", 'quote "', None]
    return [
        Item(
            f"id{generator.randrange(number)}",
            f"{generator.randrange(number // 2)}.png",
            "place",
            caption=generator.choice(captions),
            boxes=generator.choice([None, "[]"]),
            stamp=str(position),
        )
        for position in range(number)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [2, 30, 500])
def test_the_order_is_that_of_sorted_objects_and_repeated_ids_are_rejects(seed, number):
    found = items(number, seed)
    expected = sorted(found, key=lambda item: (stable_order(seed, item.path, item.caption or ""), item.id))
    seen, kept, repeated = set(), [], []
    for item in expected:
        (repeated if item.id in seen else kept).append(item)
        seen.add(item.id)
    given = list(chosen(found, seed))
    assert [item for item in given if isinstance(item, Item)] == kept
    assert [item.id for item in given if isinstance(item, Reject)] == [item.id for item in repeated]


def test_nothing_one_item_and_a_thousand_alike():
    assert list(chosen([], 0)) == []
    one = Item("a", "a.png", "\ud83d\ude00\udc80", caption="\0", questions=[{"question": "?"}])
    assert list(chosen([one], 0)) == [one]
    first, *rest = chosen([one] * 1000, 3)
    assert first == one and len(rest) == 999 and all(isinstance(found, Reject) for found in rest)


def test_a_selection_is_given_again_and_takes_a_part_of_the_memory_of_objects():
    def make(number):
        for position in range(number):
            name = f"folder/{position:09d}.jpg"
            yield Item(f"{position:016x}", name, name, caption=f"a photograph number {position}", stamp="12345-67890")

    tracemalloc.start()
    objects = list(make(5000))
    as_objects = tracemalloc.get_traced_memory()[0]
    del objects
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    selection = Selection(0)
    for item in make(5000):
        selection.add(item)
    number = sum(1 for _ in selection)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert number == 5000 and list(selection) == list(chosen(make(5000), 0))
    assert peak < 0.75 * as_objects  # which are not sorted yet


@pytest.mark.parametrize("rows", [0, 3, 250])
def test_tables_have_the_bytes_of_tables_that_are_written_at_once(tmp_path, rows, monkeypatch):
    settings = SlakeFolderVqa(source="slake-folder", folder=str(tmp_path))
    said = dict.fromkeys(("question", "answer", "answer_type", "content_type", "modality", "location"), "x")
    found = [
        Item(f"i{number}", "p", "p", "train", questions=[{"question_id": f"{number}-{n}", **said} for n in range(2)])
        for number in range(max(1, rows))
    ] + [Reject("question", str(number), "no\ud800") for number in range(rows)]
    monkeypatch.setattr(slake_folder, "listing", lambda *_: iter(found))
    fetch(settings, tmp_path, tmp_path / "out")
    for name, schema in TABLES.items():
        write_table(tmp_path / name, [row for table, row in tabulate(found, settings) if table == name], schema)
        assert (tmp_path / "out" / f"{name}.parquet").read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("change", ["order", "other image"])
def test_questions_that_do_not_follow_their_images_are_refused(tmp_path, change):
    write_slake(tmp_path / "slake")
    settings = SlakeFolderVqa(source="slake-folder", folder=str(tmp_path / "slake"))
    fetch(settings, tmp_path / "cache", tmp_path / "source")
    table = tmp_path / "source" / "questions.parquet"
    rows = read_table(table)
    rows = rows[::-1] if change == "order" else [*rows, {**rows[0], "image_id": "unknown"}]
    write_table(table, rows, TABLES["questions"])
    with pytest.raises(TriptychError, match="its questions are not in the order of its images"):
        write_dataset(settings, tmp_path / "source", tmp_path / "cache", tmp_path / "out")
    assert not (tmp_path / "out" / "questions.parquet").exists()
