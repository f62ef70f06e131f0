"""How fast is Triptych on a GPU? One command of less than ten minutes, the same on every machine.

    make bench-gpu                                   # here; triptych bench --profile profiles/aire: as a job

1. device: versions, rates of matrix products and of memory, and the first use of attention at new lengths, with and
   without cuDNN, which plans anew for every shape;
2. tests: tests/train/test_cuda.py;
3. stages 3, 2 and 1 of config/config.yaml, with random weights of TinyLlama-1.1B's shape and features of CLIP-L's (576
   tokens of 1024 numbers): start, with nothing compiled before, first steps, steady steps, compiled graphs, memory;
4. profile: three steady steps of stage 3: kernels, the share of time in which the GPU is busy, waits of the host;
5. rivals: transformers' Trainer on stage 3 with the same features, computed before: as it is, with Liger's kernels, and
   compiled; rows padded to multiples of 64, cuDNN's attention off for all;
6. answering: 64 questions.

Each part is a process of its own with a time limit, so that one that fails loses none of the others; after each, the
results file is written anew. `triptych plan` reads it. On a CPU, `--tiny` tries the whole course.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from printed import print_table
from triptych.errors import TriptychError, message_of
from triptych.io.manifest import read_json, write_json

LIMIT = 560.0  # seconds for all of it
LEAST = 10.0  # seconds below which a part is not begun
# Part -> its seconds. What a part leaves is there for the next ones.
BUDGET = {
    **{"device": 30, "tests": 70, "stage 3": 150, "stage 2": 75, "stage 1": 50, "profile": 45},
    **{"Trainer": 25, "Trainer + Liger": 25, "Trainer + compile": 50, "answering": 40},
}
STAGES = ("3", "2", "1")
RIVALS = {"Trainer": "plain", "Trainer + Liger": "liger", "Trainer + compile": "compile"}


def parts_of(tiny: bool) -> dict[str, Callable[[float], dict[str, Any]]]:
    """The functions of all parts, from seconds to a record."""
    import gpu_parts as parts
    from random_models import FULL, TINY

    size = TINY if tiny else FULL
    steps = {"steps": 4} if tiny else {}
    found: dict[str, Callable] = {
        "device": partial(parts.device_part, size, **({"tries": 1} if tiny else {})),
        "tests": partial(parts.tests_part, size),
        "profile": partial(parts.profile_part, size, **({"warm_up": 2} if tiny else {})),
    }
    found |= {f"stage {name}": partial(parts.stage_part, name, size, **steps) for name in STAGES}
    rival = {**steps, "backend": "aot_eager"} if tiny else {}
    found |= {name: partial(parts.rival_part, kind, size, **rival) for name, kind in RIVALS.items()}
    return found | {"answering": partial(parts.answering_part, size, **({"number": 4} if tiny else {}))}


def measure(part: str, tiny: bool, seconds: float, out: Path) -> None:
    """Run one part in this process and write its record."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)
    if tiny:
        torch.set_num_threads(1)
    try:
        record = parts_of(tiny)[part](seconds)
    except Exception as error:  # whatever it is, the other parts are measured, and the record says it
        record = {"error": f"{type(error).__name__}: {message_of(error)[:500]}"}
    write_json(out, record)


def run_part(context: Any, part: str, tiny: bool, seconds: float, out: Path) -> dict[str, Any]:
    """Run one part in a process of its own, for so many seconds at most."""
    start = time.monotonic()
    process = context.Process(target=measure, args=(part, tiny, seconds, out), daemon=False)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        record = {"error": f"stopped after its {seconds:.0f} s"}
    elif out.exists():
        record = read_json(out)
    else:
        record = {"error": f"its process ended with status {process.exitcode}"}
    out.unlink(missing_ok=True)
    return {**record, "seconds": round(time.monotonic() - start, 1)}


def print_results(results: dict[str, Any]) -> None:
    """The table of all parts, and what follows from it."""
    rows = [["part", "seconds", "result"]]
    for part, record in results["parts"].items():
        shown = {key: value for key, value in record.items() if key not in ("seconds", "longest")}
        rows.append(
            [part, record.get("seconds", 0), "; ".join(f"{key} {_short(value)}" for key, value in shown.items())]
        )
    print_table(*rows)
    own = results["parts"].get("stage 3", {}).get("samples_per_s")
    for name in RIVALS:
        if own and (other := results["parts"].get(name, {}).get("samples_per_s")):
            print(f"stage 3 is {own / other:.2f} times {name}")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measure all parts, write the results file after each, and print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/bench.json"), help="results file")
    parser.add_argument("--parts", nargs="+", choices=BUDGET, help="measure these parts only")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="for all of it")
    parser.add_argument("--tiny", action="store_true", help="models of tiny width and few steps: does everything work?")
    arguments = parser.parse_args()
    # Processes that measure are forks, which cannot use a GPU if the process before them asked the driver for it.
    os.environ |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error", "KINETO_LOG_LEVEL": "5"}
    patience = 4 if arguments.tiny else 1  # a CPU with other work, where only the course counts
    end = time.monotonic() + patience * arguments.seconds
    results: dict[str, Any] = {"tiny": arguments.tiny, "parts": {}}
    compiled = tempfile.TemporaryDirectory()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled.name  # empty, so that a start is one with nothing compiled before
    # Where the process that is forked finds what it imports once for all parts.
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpu_parts"])
    for part in arguments.parts or [part for part in BUDGET if not arguments.tiny or part != "tests"]:
        left = end - time.monotonic()
        if left < LEAST:
            record = {"skipped": f"{left:.0f} s are left"}
        else:
            record = run_part(
                context, part, arguments.tiny, min(left, patience * BUDGET[part]), arguments.out.with_suffix(".part")
            )
        results["parts"][part] = record
        print(f"{part}: {record}", flush=True)
        write_json(arguments.out, results)
    compiled.cleanup()
    print_results(results)
    print(f"written: {arguments.out}")
    if failed := [part for part, record in results["parts"].items() if "error" in record]:
        raise TriptychError(f"parts that failed: {', '.join(failed)}; the others are in {arguments.out}")


if __name__ == "__main__":
    from triptych.errors import run_step

    run_step(main)
