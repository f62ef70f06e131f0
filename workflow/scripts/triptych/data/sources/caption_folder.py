"""Captioned images of the user's own: a folder with a table and the image files that it names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.config.datasets import FolderCaptions
from triptych.config.texts import located
from triptych.data.sources.base import Item, Read, Reject, Selection, item_id, read_below
from triptych.data.sources.image_names import Respelt, locate
from triptych.data.sources.table_files import Columns, read_rows


def listing(settings: FolderCaptions, cache: Path) -> Iterator[Item | Reject]:
    """List images of the table in selection order, whatever the order of its rows.

    Raises:
        TriptychError: the table is missing, cannot be read or lacks a column; it names the file and the column.
    """
    folder, selection = located(settings.folder), Selection(settings.seed)
    names = Respelt()
    for position, row, reason in read_rows(
        folder / settings.table, Columns(settings.image_column, settings.caption_column)
    ):
        if row is None:
            yield Reject("image", position, reason)
        else:
            name, caption = row
            place, stamp = locate(folder, name)
            names.meet(name, place)
            selection.add(Item(item_id(name, caption), name, place, caption=caption, stamp=stamp))
    names.say()
    yield from selection


@contextmanager
def reader(settings: FolderCaptions, cache: Path) -> Iterator[Read]:
    """Read images by their names below the folder; names that lead out of it are refused."""
    folder = located(settings.folder)

    def read(place: str) -> bytes:
        return read_below(folder, place)

    yield read
