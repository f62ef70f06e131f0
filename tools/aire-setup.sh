#!/usr/bin/env bash
# On a login node: .venv with the CUDA build of torch. Python 3.11 comes from the machine, or from its miniforge module.
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
make install PYTHON="$python"
.venv/bin/python - <<'CHECK'
import sys

import torch

print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
if torch.version.cuda is None:
    sys.exit("this is a CPU build of torch, so GPU jobs would compute on the CPU; see docs/aire.md, 'A CPU build of torch'")
CHECK
