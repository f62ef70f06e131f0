"""Folders and tables of the user's own that a study reads: what of them is not there, before anything runs."""

from collections.abc import Iterable, Iterator
from typing import Any

from triptych.config import paths
from triptych.config.datasets import SLAKE_VARIABLE
from triptych.config.study import Study
from triptych.config.texts import located


def still_read(study: Study) -> tuple[list[str], list[str]]:
    """Name the data sets and the models that are yet to be read."""
    datasets = [name for name in study.grid.used_datasets if not study.path(paths.SOURCE, dataset=name).exists()]
    models = [name for name in study.grid.models if not study.path(paths.MODEL, role=name, tag="").exists()]
    return datasets, models


def absent(study: Study, datasets: Iterable[str], models: Iterable[str]) -> list[str]:
    """Say which folders and tables of data sets and models are not there, a line for each."""
    named = {name: study.datasets[name] for name in datasets}
    lines = [line for name, settings in named.items() for line in _absent(f"datasets.{_key(study, name)}", settings)]
    wanted = {name: study.grid.models[name] for name in models}
    # Both parts of a LLaVA have the one key `models.llava`.
    keys = {name: f"models.{getattr(model, 'part_of', name)}" for name, model in wanted.items()}
    lines += [line for name, model in wanted.items() for line in _absent(keys[name], model)]
    return list(dict.fromkeys(lines))  # a data set of two sizes is named once, and a LLaVA


def _key(study: Study, name: str) -> str:
    """The key of a data set whose name may end with a size."""
    return max((key for key in study.settings.datasets if name.startswith(key)), key=len)


def _absent(key: str, settings: Any) -> Iterator[str]:
    if not hasattr(settings, "folder"):
        tables = settings.local_tables() if hasattr(settings, "local_tables") else []
        yield from (f"{key}: the table {table} is not there" for table in tables if not table.exists())
        return
    given = getattr(settings, "location", None) or (located(settings.folder) if settings.folder else None)
    if given is None:
        yield f"{key}.folder: none is given; set {SLAKE_VARIABLE}=/path/to/slake, or the key"
    elif not given.is_dir():
        yield f"{key}.folder: {given} is not there, or is no folder"
