"""Where data come from: one module a source, all with the same two functions (see `items`)."""

from importlib import import_module
from types import ModuleType

from triptych.config.datasets import Dataset

_SLAKE_LAYOUT = ("embedded-medical", "slake-folder", "slake-hub")


def source_module(settings: Dataset) -> ModuleType:
    """The module of a data set's source, imported when it is needed: some are heavy."""
    name = "slake" if settings.source in _SLAKE_LAYOUT else settings.source.replace("-", "_")
    name = "embedded.openmoji" if name == "openmoji" else name
    return import_module(f"triptych.data.sources.{name}")
