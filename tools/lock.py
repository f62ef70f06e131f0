"""Write the three lock files from pyproject.toml (run by `make lock`; needs `uv`).

One resolution, three files: torch stands apart because it comes in a CPU and a CUDA build, each with hashes of its
own, and its CUDA libraries stand apart so that a machine with the CPU build does not download 3 GB in vain.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA = re.compile(r"^(nvidia-|cuda-|triton==)")
# The CPU build of torch 2.13.0 for CPython 3.11 on Linux x86-64 ("2.13.0+cpu"), which pip prefers where it can
# see it; the index itself offers the CUDA build, whose hashes the resolution finds.
CPU_TORCH_HASH = "sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
HEADER = "# Written by `make lock` from pyproject.toml. Do not edit.\n"


def write(name: str, blocks: list[str]) -> None:
    """Write one lock file."""
    (ROOT / name).write_text(HEADER + "\n".join(blocks) + "\n")
    print(f"{name}: {len(blocks)} entries")


def main() -> None:
    """Resolve, add the CPU wheel's hash and split off the CUDA libraries."""
    command = [
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        "--extra",
        "dev",
        "--universal",
        "--python-version",
        "3.11",
    ]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet", *sys.argv[1:]]
    resolved = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    blocks = re.split(r"\n(?=[a-z0-9])", resolved.strip())
    torch = [f"{block} \\\n    --hash={CPU_TORCH_HASH}" for block in blocks if block.startswith("torch==")]
    cuda = [block for block in blocks if CUDA.match(block)]
    base = [block for block in blocks if not CUDA.match(block) and not block.startswith("torch==")]
    write("requirements-torch.lock", torch)
    write("requirements-cuda.lock", cuda)
    write("requirements.lock", ["-r requirements-torch.lock", *base])


if __name__ == "__main__":
    main()
