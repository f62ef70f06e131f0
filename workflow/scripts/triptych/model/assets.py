"""Step: put one frozen model into a folder, with a manifest of its files' hashes."""

import argparse
from pathlib import Path

from pydantic import TypeAdapter

from triptych.model import language_model, vision
from triptych.settings import Models
from triptych.storage import atomic_directory, canonical_json, run_step, sha256_file, write_json

PREPARE = {"language_model": language_model.prepare, "vision_encoder": vision.prepare}


def main() -> None:
    """Fetch and convert one model; its manifest is written last."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--role", required=True, choices=sorted(PREPARE))
    parser.add_argument("--settings", required=True, help="the model's settings as JSON")
    parser.add_argument("--cache", type=Path, required=True, help="folder of downloads")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    field = Models.model_fields[arguments.role]
    settings = TypeAdapter(field.rebuild_annotation()).validate_json(arguments.settings)
    with atomic_directory(arguments.out) as folder:
        PREPARE[arguments.role](settings, arguments.cache, folder)
        files = {
            path.relative_to(folder).as_posix(): sha256_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and ".cache" not in path.parts
        }
        write_json(folder / "manifest.json", {"settings": settings.model_dump(), "files": files})
    print(f"{arguments.role}: {canonical_json(settings.model_dump())} -> {arguments.out}")


if __name__ == "__main__":
    run_step(main)
