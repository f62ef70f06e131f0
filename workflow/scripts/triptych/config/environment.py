"""Environment variables that say what a setting says, too: where the two differ, a line says which one is used."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from triptych.config.settings import Settings
from triptych.config.texts import CACHE_VARIABLE, located

# Variables of Weights & Biases, by the setting that takes precedence over them.
OF_WANDB = {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "mode": "WANDB_MODE"}


def overruled(config: Mapping[str, Any], settings: Settings) -> Iterator[str]:
    """Say where a variable and a setting that the configuration names differ, and which one is used.

    Args:
        config: the configuration as written: defaults are in nobody's way.
        settings: the same, checked.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if "cache" in config and named and located(named).resolve() != located(settings.cache).resolve():
        yield f"cache: {CACHE_VARIABLE} takes precedence: {named} is used, not {settings.cache}"
    for key, variable in OF_WANDB.items():
        named, value = os.environ.get(variable), getattr(settings.wandb, key)
        if key in settings.wandb.model_fields_set and named and value is not None and named != value:
            yield f"wandb.{key}: takes precedence over {variable}: {value} is used, not {named}"
