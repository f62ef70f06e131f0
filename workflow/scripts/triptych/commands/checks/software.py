"""Checks of what is installed: Python, packages, the build of torch against the driver, locale and clock."""

import locale
import re
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from triptych.commands.checkout import ROOT
from triptych.commands.checks.finding import Finding, Place, fault, ok, warning
from triptych.utils.driver import FIRST_DRIVER, cuda_for, cuda_of_driver, find_driver

LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(.*)", re.MULTILINE)
PYTHONS = ((3, 11), (3, 12))
CLOCK_SKEW = 60  # seconds; see `refuse_dates_ahead` in workflow_hooks.py


def python(_: Place) -> Finding:
    """The version of Python."""
    found = "Python " + ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] not in PYTHONS:
        return fault(f"{found}; needed: 3.11 or 3.12", "make clean; make install PYTHON=/path/to/python3.11")
    return ok(found)


def packages(_: Place) -> Finding:
    """Installed packages against the lock files."""
    files = [ROOT / name for name in ("requirements.lock", "requirements-torch.lock", "requirements-cuda12.lock")]
    if not files[0].is_file():
        return warning("no lock files beside the package", "run from a clone of the repository, after `make install`")
    locked = {name: lock for name, lock in _locked(files[0]).items() if name != "torch"}
    builds = [_locked(file)["torch"].versions for file in files[1:] if file.is_file()]
    locked["torch"] = Locked([number for build in builds for number in build], optional=False)
    wrong = [text for name, lock in locked.items() if (text := _difference(name, lock))]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        return fault(f"differs from the lock files: {', '.join(wrong[:5])}{more}", "make clean; make install")
    return ok(f"{len(locked)} packages as locked; torch {version('torch')}")


class Locked(NamedTuple):
    """Versions of a package in a lock file, of which Python and platform choose one, or none."""

    versions: list[str]
    optional: bool


def _locked(file: Path) -> dict[str, Locked]:
    """Read a lock file."""
    found: dict[str, Locked] = {}
    for name, number, rest in LOCKED.findall(file.read_text(encoding="utf-8")):
        before = found.get(name, Locked([], False))
        found[name] = Locked([*before.versions, number], ";" in rest)
    return found


def _difference(name: str, lock: Locked) -> str | None:
    """Say how an installed package differs; builds of one version ("2.13.0+cpu") do not."""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return None if lock.optional else f"{name} is missing"
    if installed.split("+")[0] in lock.versions:
        return None
    return f"{name} {installed} (locked: {' or '.join(lock.versions)})"


def driver(place: Place) -> Finding:
    """The build of torch against the driver."""
    import torch

    cuda = torch.version.cuda
    build = f"torch {torch.__version__}" + (f" (CUDA {cuda})" if cuda else ", which computes on the CPU alone")
    found = find_driver()
    wanted = bool(place.gpus) and place.study.settings.runtime.device != "cpu"
    if found is None:
        if wanted and not torch.cuda.is_available():
            return fault(
                f"{build}; no NVIDIA driver, though the job was given a GPU",
                "the partition has no NVIDIA GPUs, or its node is broken: name another in the profile, or ask the "
                "cluster's support",
            )
        return ok(f"{build}; no NVIDIA driver, and no GPU is asked for")
    newest = cuda_of_driver()
    runs = f"driver {found}" + (f" (CUDA {newest // 1000}.{newest % 1000 // 10})" if newest else "")
    if cuda is None:
        said = f"{build}; {runs}"
        remedy = "make aire-setup, or on one machine: make clean; make install TORCH_CUDA=13 (before driver 580: 12)"
        return fault(said, remedy) if wanted else warning(said, remedy)
    first = FIRST_DRIVER.get(int(cuda.split(".")[0]), 0)
    if int(found.split(".")[0]) < first:
        older = cuda_for(found)
        remedy = f"make clean; make install TORCH_CUDA={older}" if older else "no build of torch can use this driver"
        return fault(f"{build} needs driver {first} or newer; {runs}", remedy)
    return ok(f"{build}; {runs}")


def text(_: Place) -> Finding:
    """The locale: file names and what is printed."""
    kinds = {"file names": sys.getfilesystemencoding(), "texts": locale.getpreferredencoding(False)}
    other = [f"{kind} in {coding}" for kind, coding in kinds.items() if coding.lower().replace("-", "") != "utf8"]
    if other:
        return warning(", ".join(other), "export LC_ALL=C.UTF-8 (in ~/.bashrc)")
    return ok("UTF-8")


def clock(place: Place) -> Finding:
    """This machine's clock against that of the file system: files from the future are made again and again."""
    place.folder.mkdir(parents=True, exist_ok=True)
    before = time.time()
    with tempfile.NamedTemporaryFile(dir=place.folder, prefix=".clock-") as file:
        file.write(b"now")
        file.flush()
        written = Path(file.name).stat().st_mtime
    ahead = written - (before if written < before else min(written, time.time()))
    if abs(ahead) > CLOCK_SKEW:
        way = "ahead of" if ahead > 0 else "behind"
        return fault(
            f"the file system's clock is {abs(ahead):.0f} s {way} this machine's",
            "ask for the clock to be set (NTP); until then Snakemake makes finished files again",
        )
    if abs(ahead) > 2:
        return warning(f"{abs(ahead):.0f} s between this machine's clock and the file system's", "watch it: 60 s harm")
    return ok(time.strftime("%Y-%m-%d %H:%M:%S %Z") + ", as the file system has it")
