"""Write the five lock files and the conda environment from pyproject.toml (run by `make lock`; needs `uv`).

One resolution, three files: torch stands apart because it comes in a CPU and a CUDA build, each with hashes of its
own, and its CUDA libraries stand apart so that a machine with the CPU build does not download 3 GB in vain. A second
resolution gives the fourth: for drivers that are too old for these libraries, the last release of torch that the
package index has for CUDA 12, with its libraries. All else is the same. The fifth is of the documentation's site alone.

Versions that are locked already are kept where pyproject.toml allows them; `python tools/lock.py --upgrade`, or
`--upgrade-package NAME`, takes newer ones.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA = re.compile(r"^(nvidia-|cuda-|triton==)")
CUDA12_TORCH = "torch==2.10.0"  # from 2.11 on, the index has builds for CUDA 13
CUDA12_FILE = "requirements-cuda12.lock"
# The CPU build of torch 2.13.0 for CPython 3.11 on Linux x86-64 ("2.13.0+cpu"), which pip prefers where it can
# see it; the index itself offers the CUDA build, whose hashes the resolution finds.
CPU_TORCH_HASH = "sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
DOCS_FILE = "requirements-docs.lock"
FILES = ("requirements-torch.lock", "requirements-cuda.lock", "requirements.lock")
HEADER = "# Written by `make lock` from pyproject.toml. Do not edit.\n"
ENVIRONMENT = "workflow/envs/triptych.yaml"
# Snakemake copies the file to where it makes the environment, so that it cannot name the lock files.
ENVIRONMENT_HEAD = """# For `snakemake --sdm conda`: the versions of the lock files. `make install` also checks hashes.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python =3.11
  - pip
  - pip:
"""


def write(name: str, blocks: list[str]) -> None:
    """Write one lock file."""
    (ROOT / name).write_text(HEADER + "\n".join(blocks) + "\n")
    print(f"{name}: {len(blocks)} entries")


def environment(requirements: list[str]) -> str:
    """Return the conda environment file of requirements, each a block of a lock file."""
    pins = [re.match(r"[^\\\n]+", block)[0].strip() for block in requirements]
    return HEADER + ENVIRONMENT_HEAD + "".join(f"      - {pin}\n" for pin in pins)


def resolve(options: list[str], override: str = "", group: str = "") -> list[str]:
    """Return what uv resolves, with hashes, for Python 3.11 and 3.12 and all platforms, a block for each package.

    Args:
        options: of uv.
        override: a requirement that replaces those of its package.
        group: a dependency group, alone; by default the package with what its developers need.

    Raises:
        SystemExit: uv finds no solution, which it explains on stderr.
    """
    wanted = ["--group", f"pyproject.toml:{group}"] if group else ["pyproject.toml", "--extra", "dev"]
    command = ["uv", "pip", "compile", *wanted, "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet", *options]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "requirements.txt")
        # What stands in the output file is what uv prefers.
        files = [ROOT / name for name in ([DOCS_FILE] if group else FILES)]
        locked = "".join(file.read_text() for file in files if file.exists())
        output.write_text(locked.replace("-r requirements-torch.lock\n", ""))
        overrides = Path(folder, "overrides.txt")
        overrides.write_text(override)
        command += ["--override", overrides, "--output-file", output]
        status = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode
        if status:
            sys.exit(status)
        return re.split(r"\n(?=[a-z0-9])", output.read_text().strip())


def is_torch(block: str) -> bool:
    """Tell whether a block of a lock file is that of torch or of one of its CUDA libraries."""
    return bool(CUDA.match(block)) or block.startswith("torch==")


def main() -> None:
    """Resolve, add the CPU wheel's hash and split off the CUDA libraries."""
    blocks = resolve(sys.argv[1:])
    cpu = f" \\\n    --hash={CPU_TORCH_HASH}"
    torch = [block.replace(cpu, "") + cpu for block in blocks if block.startswith("torch==")]
    cuda = [block for block in blocks if CUDA.match(block)]
    base = [block for block in blocks if not is_torch(block)]
    write("requirements-torch.lock", torch)
    write("requirements-cuda.lock", cuda)
    write("requirements.lock", ["-r requirements-torch.lock", *base])
    older = resolve([], CUDA12_TORCH)
    if [block for block in older if not is_torch(block)] != base:
        sys.exit(f"{CUDA12_TORCH} needs other versions of other packages; choose another release of torch")
    write(CUDA12_FILE, [block for block in older if is_torch(block)])
    write(DOCS_FILE, resolve(sys.argv[1:], group="docs"))
    (ROOT / ENVIRONMENT).write_text(environment(blocks))


if __name__ == "__main__":
    main()
