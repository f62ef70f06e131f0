"""The command `triptych`: all that is run by hand, each a subcommand.

A subcommand is a module with `build_parser`, which returns its command line, and `main`, which runs it. It is imported
when it is called: `triptych status` does not wait for torch.
"""

import argparse
import os
import select
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from triptych import __version__

SHELLS = ("bash", "zsh", "fish")


class Command(NamedTuple):
    """A subcommand."""

    module: str
    summary: str


COMMANDS = {
    "new": Command("triptych.commands.new", "start a study in a folder of its own"),
    "doctor": Command("triptych.commands.doctor", "check a machine or cluster for what would stop a study"),
    "plan": Command("triptych.commands.plan", "estimate what a study costs and the difference that it can detect"),
    "fetch": Command("triptych.commands.fetch", "ask the hub for all that a study downloads, before it is downloaded"),
    "run": Command("triptych.commands.run", "run a study with Snakemake, and watch all of it on one screen"),
    "status": Command("triptych.commands.status", "show which jobs of a study are done, running, failed or pending"),
    "resume": Command("triptych.commands.resume", "continue a study after Snakemake itself was killed"),
    "bench": Command("triptych.commands.bench", "measure how fast a GPU trains and answers, here or on the cluster"),
    "verify": Command("triptych.commands.verify", "verify all results against their hashes and checksums"),
    "compare": Command("triptych.tables.comparison", "compare schedules on predictions of your choice"),
    "ask": Command("triptych.commands.ask", "ask a trained model a question about an image"),
    "serve": Command("triptych.serve.command", "ask trained models in a page of the browser, side by side"),
    "export": Command("triptych.commands.export", "write a checkpoint as a folder for transformers"),
    "export-results": Command("triptych.report.results", "write the numbers of a study as one file, results.json"),
    "wandb": Command("triptych.report.wandb_runs", "write all training jobs so far as Weights & Biases runs"),
    "convert": Command("triptych.data.sources.published_vqa", "convert VQA-RAD or PathVQA to SLAKE's layout"),
    "schema": Command("triptych.config.settings", "write the JSON schema of the settings"),
}


def build_parser(complete: bool = False) -> argparse.ArgumentParser:
    """Return the command line of `triptych`.

    Args:
        complete: include the options of all subcommands, which imports all their modules (some seconds).
    """
    parser = argparse.ArgumentParser(
        prog="triptych",
        description="Train vision-language models in stages, and compare schedules of stages. Snakemake runs a study; "
        "these commands plan, watch, verify and export it.",
        epilog="triptych COMMAND --help describes a command, with an example.",
    )
    parser.add_argument("--version", action="version", version=f"triptych {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        help="print a completion script for the shell; its first lines say where to save it",
    )
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = [import_module(command.module).build_parser()] if complete else []
        subparsers.add_parser(name, help=command.summary, parents=own, add_help=not complete)
    return parser


def completion(shell: str) -> str:
    """Return a script with which a shell completes commands, options and, where an option takes a path, files."""
    import shtab

    parser = build_parser(complete=True)
    [subparsers] = (action.choices for action in parser._actions if action.dest == "command")
    for command in subparsers.values():
        for action in command._actions:
            if action.type is Path:
                action.complete = shtab.FILE
    return shtab.complete(parser, shell)


def _reader_is_gone() -> bool:
    """Say whether whoever reads the output has closed it, as `| head` does; other pipes may break, too."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand; a `TriptychError` becomes one line on stderr and exit status 1.

    Args:
        arguments: words of the command line; None for those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        from triptych.errors import run_step  # here, because it imports pyarrow, which `triptych --help` has no use for

        name, *rest = arguments
        try:
            run_step(lambda: import_module(COMMANDS[name].module).main(rest))
            sys.stdout.flush()
        except BrokenPipeError:
            if not _reader_is_gone():
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            sys.exit(1)
        return
    parser = build_parser()
    if shell := parser.parse_args(arguments).print_completion:
        print(completion(shell))
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
