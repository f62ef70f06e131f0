"""How long does planning take? Dry runs of `config/config.yaml` with more and more seeds, as processes of their own.

    make bench-plan

Wall time, CPU time and largest resident size of `snakemake --dry-run` with the profile for Aire, medians over rounds.
"One job" is a dry run of one training alone with the same configuration: what every job on a cluster pays at its start,
once more, to read the workflow and find its place in it.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from printed import cell, print_table

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config/config.yaml"
JOBS = (100, 1000, 10_000)
BARS = {1000: (3, None), 10_000: (20, 350)}  # seconds, MB
JOB_BAR = 2  # CPU seconds
ONE = "results/checkpoints/1/shared/seed0/manifest.json"


def dry_run(config: Path, folder: Path, *arguments: str) -> tuple[float, float, float, int]:
    """Seconds, CPU seconds, largest MB and number of jobs of a dry run."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--snakefile", str(ROOT / "Snakefile")]
    command += ["--profile", str(ROOT / "profiles/aire"), "--directory", str(folder), "--configfile", str(config)]
    log = folder / "log"
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--dry-run", "--quiet", "rules"], stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    text = log.read_text()
    if status:
        sys.exit(text)
    jobs = int(re.search(r"^total\s+(\d+)", text, re.MULTILINE)[1])
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6, jobs


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows = [["jobs", "seconds (median, range)", "CPU seconds", "MB", "bar"]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        study = yaml.safe_load(CONFIG.read_text()) | {"pathvars": {"results": "results"}, "seeds": [0]}
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(study))
        first = dry_run(file, folder)[3]
        file.write_text(yaml.safe_dump(study | {"seeds": [0, 1]}))
        more = dry_run(file, folder)[3] - first
        for wanted in JOBS:
            seeds = max(1, round((wanted - first) / more) + 1)
            small = study | ({"schedules": study["schedules"][:2]} if wanted < first else {})
            file.write_text(yaml.safe_dump(small | {"seeds": list(range(seeds))}))
            found = [dry_run(file, folder) for _ in range(arguments.rounds)]
            seconds, processor, memory, jobs = ([run[place] for run in found] for place in range(4))
            limit, most = BARS.get(wanted, (None, None))
            bar = "" if limit is None else f"{limit} s: {'met' if statistics.median(seconds) <= limit else 'missed'}"
            bar += "" if most is None else f", {most} MB: {'met' if statistics.median(memory) <= most else 'missed'}"
            rows.append([jobs[0], cell(seconds, 1), cell(processor, 1), cell(memory, 0), bar])
        found = [dry_run(file, folder, ONE) for _ in range(arguments.rounds)]
        processor = [run[1] for run in found]
        bar = f"{JOB_BAR} CPU s: {'met' if statistics.median(processor) <= JOB_BAR else 'missed'}"
        rows.append(["one job of them", cell([run[0] for run in found], 1), cell(processor, 1), "", bar])
    print_table(*rows)


if __name__ == "__main__":
    main()
