"""Export a checkpoint as a folder that plain transformers loads: `triptych export`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from triptych.errors import run_step


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych export`."""
    parser = argparse.ArgumentParser(
        prog="triptych export",
        description=main.__doc__,
        epilog="example: triptych export --checkpoint results/slake/checkpoints/1-2-3/fold0/seed0 "
        "--models results/slake/models --data results/slake/data/medical --out exports/1-2-3-fold0",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--models", type=Path, required=True, help="folder that contains language_model/ and vision_encoder/"
    )
    parser.add_argument(
        "--data",
        type=Path,
        nargs="*",
        default=[],
        help="folders of the data sets that it was trained on, for the model card",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        nargs="*",
        default=[],
        help="files of its answers (predictions/.../seed0.parquet), whose exact match the model card states",
    )
    parser.add_argument("--adapter", action="store_true", help="keep the LoRA as a peft adapter instead of merging it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload the folder to this repository of the hub, private where it is new; offline or without a token, "
        "print the command that does",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a checkpoint as a folder that plain transformers loads, with its processor and a model card."""
    arguments = build_parser().parse_args(arguments)
    from triptych.export.push import check_repository, push
    from triptych.export.write import export  # here, so that a mistyped option does not wait for torch

    if arguments.push is not None:
        check_repository(arguments.push)
    layout = export(
        arguments.checkpoint, arguments.models, arguments.data, arguments.out, arguments.adapter, arguments.predictions
    )
    loader = "transformers" if layout == "llava" else "triptych.export.load"
    print(f"{arguments.checkpoint} -> {arguments.out}, for {loader}; see its README.md")
    if arguments.push is not None:
        print(push(arguments.out, arguments.push))


if __name__ == "__main__":
    run_step(main)
