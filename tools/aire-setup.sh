#!/usr/bin/env bash
# On a login node: .venv with the build of torch that the driver of the GPU nodes can use. Its argument, 12 or 13, names
# the CUDA release; without one, a job of a minute on the GPU partition asks for the driver.
# Python 3.11 comes from the machine, or from its miniforge module.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v python3.11 || command -v python3.12 || true)
if [ -z "$python" ]; then
    [ -x .python/bin/python ] || {
        type module > /dev/null 2>&1 || source /etc/profile
        module load miniforge
        conda create --quiet --yes --prefix .python python=3.11
    }
    python=$PWD/.python/bin/python
fi
partition=$(sed -n 's/^    slurm_partition: \(gpu[^ ]*\).*/\1/p' profiles/aire/profile.yaml | head -1)
cuda=${1:-$("$python" workflow/scripts/triptych/utils/driver.py --partition "${partition:-gpu}")}
case $cuda in 12 | 13) ;; *) echo "TORCH_CUDA=$cuda: 12 or 13 is needed" >&2; exit 1 ;; esac
if [ -x .venv/bin/python ]; then
    built=$(.venv/bin/python -c 'import torch; print((torch.version.cuda or "none").split(".")[0])' 2> /dev/null || true)
    [ "$built" = "$cuda" ] || rm -rf .venv
fi
make install PYTHON="$python" TORCH_CUDA="$cuda"
.venv/bin/python - <<'CHECK'
import sys

import torch

print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
if torch.version.cuda is None:
    sys.exit("this is a CPU build of torch, so GPU jobs would stop with an error; see docs/aire.md, 'Drivers and builds of torch'")
CHECK
