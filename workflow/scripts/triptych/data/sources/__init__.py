"""Where data come from: one module a source, all with the same two functions (see `base`)."""

from importlib import import_module
from types import ModuleType

from triptych.config.datasets import Dataset


def source_module(settings: Dataset) -> ModuleType:
    """The module of a data set's source, imported when it is needed: some are heavy."""
    return import_module(settings.module)
