"""The NVIDIA driver of a machine, and the build of torch that it can run. Also a program, without any package:

    python workflow/scripts/triptych/utils/driver.py [--partition gpu]

prints the CUDA release (13 or 12) whose build of torch the GPUs can use: those of a SLURM partition, where it is named
and there is SLURM, for a login node has other GPUs or none.
"""

import argparse
import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

# By CUDA release, the first driver that runs it (NVIDIA: CUDA Compatibility, minor version compatibility).
FIRST_DRIVER = {13: 580, 12: 525}
KERNEL = Path("/proc/driver/nvidia/version")
QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
WAIT = 900  # seconds in the queue of a partition


def find_driver() -> str | None:
    """Find the version of the driver that this machine runs, such as 580.65.06; None where it has none."""
    if KERNEL.is_file() and (found := _version(KERNEL.read_text(encoding="utf-8", errors="replace"))):
        return found
    return _asked(QUERY, 60) if shutil.which(QUERY[0]) else None


def driver_of(partition: str) -> str | None:
    """Find the driver of a SLURM partition's GPU nodes, by a job of a minute; None where it does not say."""
    job = ("srun", f"--partition={partition}", "--gres=gpu:1", "--time=1", "--quiet", *QUERY)
    return _asked(job, WAIT)


def cuda_of_driver() -> int | None:
    """Ask the driver's library for the newest CUDA release that it runs, as 13000; None where there is no library."""
    try:
        number = ctypes.c_int()
        answered = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return number.value if answered == 0 and number.value else None


def cuda_for(driver: str) -> int | None:
    """Choose the newest CUDA release that a driver runs; None where it is too old for all."""
    release = int(driver.split(".")[0])
    return next((cuda for cuda, first in FIRST_DRIVER.items() if release >= first), None)


def _asked(command: tuple[str, ...], seconds: float) -> str | None:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return _version(said.stdout) if said.returncode == 0 else None


def _version(text: str) -> str | None:
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)*)\b", text)
    return found[1] if found else None


def main() -> None:
    """Print the CUDA release of the build of torch to install; what was found goes to stderr."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--partition", help="SLURM partition that has the GPUs")
    partition = parser.parse_args().partition
    asked = partition if shutil.which("srun") else None
    driver = driver_of(asked) if asked else find_driver()
    where = f"partition {asked}" if asked else "this machine"
    if driver is None:
        sys.exit(f"{where}: no NVIDIA driver found; name the CUDA release: TORCH_CUDA=13 (driver 580 or newer), or 12")
    if (cuda := cuda_for(driver)) is None:
        sys.exit(f"{where}: driver {driver} is older than {FIRST_DRIVER[12]}; no build of torch here can use it")
    print(f"{where}: driver {driver}, so the build for CUDA {cuda}", file=sys.stderr)
    print(cuda)


if __name__ == "__main__":
    main()
