"""Names of the results: which are taken, and which are too long."""

from collections.abc import Collection, Iterator, Sequence

from triptych.config import paths
from triptych.config.arms import reserved_names
from triptych.config.settings import Settings

LONGEST_NAME = 160  # of the 255 bytes that file systems allow: temporary names add host and process, logs fold and seed


def clashes(
    settings: Settings, prefixes: Collection[str], models: Collection[str], tags: Sequence[str]
) -> Iterator[str]:
    """Say which names something else has already, or are too long for files, a line each.

    Args:
        settings: the study.
        prefixes: names of its prefixes.
        models: names of its models' folders.
        tags: what follows the role in names of models.
    """
    taken = reserved_names()
    for name in prefixes:
        if name in taken:
            yield f"schedules: '{name}' is the name of {taken[name]}, too; rename a stage"
    datasets = settings.expanded_datasets()
    encoded = [f"{name}{tag}" for name in datasets for tag in tags if tag]
    for name in encoded:
        if name in datasets:
            yield f"datasets.{name}: is also the name of an ablation's features; rename one"
    patterns = (paths.SOURCE, paths.DATA, paths.FEATURES)
    files = {name for pattern in patterns for name in paths.beside(pattern, "dataset")}
    for name in datasets:
        if name in files:
            yield f"datasets.{name}: a file or folder of the results has this name; rename the data set"
    made = {"datasets": [*datasets, *encoded], "schedules": prefixes, "ablations": models}
    for kind, name in ((kind, name) for kind, names in made.items() for name in names):
        if len(name) > LONGEST_NAME:
            yield (
                f"{kind}: '{name[:40]}...' is a name of {len(name)} letters, and {LONGEST_NAME} are the most of a "
                "file's; shorten the names that it is made of"
            )
