"""Step: fetch one frozen model into a folder, with a manifest of its files' hashes."""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter

from triptych.config.base import Record
from triptych.config.models import FolderLlavaPart, HubLlavaPart, LlavaPart, Models
from triptych.config.texts import cache_folder, located
from triptych.download.huggingface import MODEL_FILES, OTHER_WEIGHTS, HubFiles, model_folder, only_other_weights
from triptych.errors import TriptychError, run_step
from triptych.io.atomic import atomic_directory
from triptych.io.manifest import canonical_json, sha256_file, write_record
from triptych.model import language_model, vision
from triptych.model.code import refuse_code
from triptych.model.inspection import in_one_line, inspect_encoder, inspect_language_model
from triptych.model.llava import take_part
from triptych.model.open_clip import convert_open_clip, is_open_clip
from triptych.utils.arguments import folder
from triptych.utils.terminal import announce

PART = ".part"  # folder, while a LLaVA is taken apart
CONVERT = {"language_model": language_model.convert_package, "vision_encoder": vision.convert_package}


def prepare_model(role: str, settings: Record, cache: Path, out: Path) -> None:
    """Write a frozen model's files into the folder `out`, as safetensors, with settings and hashes in `manifest.json`.

    Args:
        role: `language_model` or `vision_encoder`.
        settings: of the model.
        cache: folder of downloads.
        out: folder to write.

    Raises:
        TriptychError: the model is unavailable, damaged or not supported, or names code of its own.
    """
    recorded = settings.model_dump()
    with atomic_directory(out) as temporary, _naming_the_source(temporary, settings):
        match settings.source:
            case "folder" if isinstance(settings, FolderLlavaPart):
                pass  # taken apart where it is
            case "hub":
                model_folder(HubFiles("model", settings.repo, settings.revision, MODEL_FILES), temporary, cache)
            case "folder":
                copy_model(located(settings.folder), MODEL_FILES, temporary)
            case "package":
                CONVERT[role](settings, cache, temporary)
        if isinstance(settings, LlavaPart):
            whole = located(settings.folder) if isinstance(settings, FolderLlavaPart) else temporary
            recorded |= _keep_part(role, whole, temporary)
        (temporary / "manifest.json").unlink(missing_ok=True)  # of a folder that this step has written before
        refuse_code(temporary)
        if role == "vision_encoder" and is_open_clip(temporary):
            with in_one_line(f"{temporary}: the model of open_clip cannot be read"):
                convert_open_clip(temporary)
        if role == "language_model":
            for doubt in inspect_language_model(temporary, settings.prompt):
                announce(f"warning: {doubt}", warning=True)
        if role == "vision_encoder" and settings.source != "package":
            print(inspect_encoder(temporary, recorded), flush=True)
        paths = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
        files = {path.relative_to(temporary).as_posix(): sha256_file(path) for path in paths}
        write_record(temporary / "manifest.json", {"settings": recorded, "files": files})


@contextmanager
def _naming_the_source(temporary: Path, settings: Record) -> Iterator[None]:
    """Let errors name the files where the user has them, not the copy that an error does away with."""
    try:
        yield
    except TriptychError as error:
        source = settings.repo if settings.source == "hub" else getattr(settings, settings.source)
        said = str(error).replace(str(temporary / PART), source).replace(str(temporary), source)
        raise TriptychError(said) from None


def _keep_part(role: str, whole: Path, temporary: Path) -> dict:
    """Leave in `temporary` one part of a LLaVA in the folder `whole`; gives the settings that its files decide."""
    found = take_part(role, whole, temporary / PART)
    for path in [path for path in temporary.iterdir() if path.name != PART]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()  # folders of a repository, too
    for path in list((temporary / PART).iterdir()):
        path.rename(temporary / path.name)
    (temporary / PART).rmdir()
    return found


def copy_model(source: Path, patterns: Sequence[str], out: Path) -> None:
    """Copy a model's files that match `patterns` from a local folder into `out`.

    Raises:
        TriptychError: the folder has no safetensors file.
    """
    files = {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}
    if not any(path.suffix == ".safetensors" for path in files):
        others = sorted({path.name for pattern in OTHER_WEIGHTS for path in source.glob(pattern)})
        remedy = only_other_weights(others) or "; name a folder that `save_pretrained` has written"
        raise TriptychError(f"{source}: has no .safetensors file{remedy}")
    for path in sorted(files):
        shutil.copyfile(path, out / path.name)


def main() -> None:
    """Fetch and convert one model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--role", required=True, choices=sorted(CONVERT))
    parser.add_argument("--settings", required=True, help="the model's settings as JSON")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder of downloads")
    parser.add_argument("--out", type=folder, required=True, help="folder to write")
    arguments = parser.parse_args()
    field = Models.model_fields[arguments.role]
    settings = TypeAdapter(field.rebuild_annotation() | HubLlavaPart | FolderLlavaPart).validate_json(
        arguments.settings
    )
    prepare_model(arguments.role, settings, arguments.cache, arguments.out)
    print(f"{arguments.role}: {canonical_json(settings.model_dump())} -> {arguments.out}")


if __name__ == "__main__":
    run_step(main)
