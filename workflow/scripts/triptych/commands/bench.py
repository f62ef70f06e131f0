"""How fast this machine's GPU, or the cluster's, trains and answers: `triptych bench`.

The measurement is `benchmarks/bench_gpu.py`. Its results file is among the study's results, where `triptych plan` finds
the rates of training.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from triptych.commands.checkout import ROOT, profile_path
from triptych.commands.cluster import submit
from triptych.config import paths
from triptych.config.study import read_study
from triptych.errors import TriptychError, run_step
from triptych.utils.arguments import add_configfile

BENCHMARK = ROOT / "benchmarks/bench_gpu.py"
TINY = "bench-tiny.json"  # of --tiny, whose rates mean nothing
RULE = "train_stage"  # whose resources the job has
MINUTES = 15  # of the job; what it does takes less than ten


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `triptych bench`."""
    parser = argparse.ArgumentParser(
        prog="triptych bench",
        description=main.__doc__,
        epilog="example: triptych bench --profile profiles/aire",
    )
    add_configfile(parser)
    parser.add_argument("--profile", type=profile_path, help="measure in a job, where this profile sends training jobs")
    parser.add_argument("--directory", "-d", type=Path, default=Path(), help="working folder of the study")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps: does everything work?")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure how fast a GPU trains and answers, in less than ten minutes; a plan then uses the rates."""
    arguments = build_parser().parse_args(arguments)
    if not BENCHMARK.is_file():
        raise TriptychError(f"{BENCHMARK} is missing; run `triptych bench` from a checkout of Triptych")
    results = (arguments.directory / read_study(arguments.configfile).results).resolve()
    out = results / (TINY if arguments.tiny else paths.BENCH)
    words = [str(BENCHMARK), "--out", str(out), *(["--tiny"] if arguments.tiny else [])]
    if arguments.profile is None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        sys.stdout.flush()
        sys.exit(subprocess.run([sys.executable, *words], env=environment).returncode)
    print(f"a job of at most {MINUTES} minutes is submitted; its log is {results / 'logs/bench/log.txt'}", flush=True)
    print(submit(arguments.profile, RULE, ["python", *words], results / "logs/bench", MINUTES), end="")


if __name__ == "__main__":
    run_step(main)
