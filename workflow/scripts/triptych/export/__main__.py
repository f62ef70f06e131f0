"""Command: write a checkpoint as a folder that plain transformers loads, with its processor and a model card."""

import argparse
from pathlib import Path

from triptych.errors import run_step
from triptych.export.write import export


def main() -> None:
    """Write a checkpoint as a folder for transformers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--models", type=Path, required=True, help="folder of language_model/ and vision_encoder/")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of its data sets, for the model card")
    parser.add_argument("--adapter", action="store_true", help="keep the LoRA as a peft adapter instead of merging it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    layout = export(arguments.checkpoint, arguments.models, arguments.data, arguments.out, arguments.adapter)
    loader = "transformers" if layout == "llava" else "triptych.export.load"
    print(f"{arguments.checkpoint} -> {arguments.out}, for {loader}; see its README.md")


if __name__ == "__main__":
    run_step(main)
