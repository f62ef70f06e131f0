"""Ask trained models in a page of the browser: `triptych serve`."""

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress

from triptych.commands.ask import DEVICE, add_choice, chosen
from triptych.config.study import read_study
from triptych.errors import TriptychError, run_step
from triptych.serve.server import PageServer
from triptych.utils.arguments import add_configfile

PORT = 8765


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych serve`."""
    parser = argparse.ArgumentParser(
        prog="triptych serve",
        description=main.__doc__,
        epilog="example: triptych serve --configfile config/demo.yaml --compare 1-2-3 2-3",
    )
    add_configfile(parser)
    add_choice(parser)
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"port of this machine, 0 for any that is free; default: {PORT}"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask trained models in a page of this machine's browser, side by side, until Ctrl-C."""
    arguments = build_parser().parse_args(arguments)
    if arguments.port != 0 and not 1024 <= arguments.port <= 65535:
        raise TriptychError(f"--port: must be 0 or a number from 1024 to 65535, not {arguments.port}")
    study = read_study(arguments.configfile)
    os.environ.setdefault(DEVICE, study.settings.runtime.device)
    cells = chosen(study, arguments.checkpoint, arguments.compare)
    with suppress(KeyboardInterrupt), PageServer(arguments.port) as server:
        from triptych.serve.desk import LoadedCheckpoints  # torch, which takes seconds

        desk = LoadedCheckpoints(study, cells)
        print(f"open {server.address}\nCtrl-C ends it", flush=True)
        server.serve_until_interrupted(desk)
    print("ended", flush=True)


if __name__ == "__main__":
    run_step(main)
