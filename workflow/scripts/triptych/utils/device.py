"""What this machine can compute: its device, precision, free memory and cores, found out when a step starts."""

import os
import re
from contextlib import AbstractContextManager, nullcontext

import psutil
import torch

from triptych.errors import TriptychError

WANTED = "TRIPTYCH_DEVICE"  # variable by which the workflow hands `runtime.device` to its steps
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}  # by their names in settings and manifests
GIVEN = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")  # variables that name the GPUs of a job
GPUS = re.compile(r"\d|GPU-|MIG-")  # how their values begin; "-1", "NoDevFiles" and nothing mean none


def cpu_wanted() -> bool:
    """Tell whether the study's settings ask for the CPU, whatever else there is."""
    return os.environ.get(WANTED) == "cpu"


def has_gpu() -> bool:
    """Tell whether there is a GPU that torch can use, and the study's settings let it be used."""
    return not cpu_wanted() and torch.cuda.is_available()


def best_device() -> torch.device:
    """Choose CUDA where there is a GPU, otherwise the CPU.

    Raises:
        TriptychError: a GPU is asked for by the settings, or was given to this job, and torch can use none.
    """
    if has_gpu():
        # cuDNN's attention would prepare itself anew, for up to a second, for every length of rows.
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # by default, convolutions in fp32 would be in TF32
        # With its index: without one, a thread would use the first GPU, whichever this process uses.
        return torch.device("cuda", torch.cuda.current_device())
    if not cpu_wanted():
        named = [f"{name}={value}" for name in GIVEN if GPUS.match(value := os.environ.get(name, ""))]
        why = "runtime.device asks for one" if os.environ.get(WANTED) == "gpu" else ", ".join(named)
        if why:
            raise TriptychError(
                f"torch {torch.__version__} can use no GPU here, though {why}; look at `nvidia-smi`, install a torch "
                "that is built for its driver, or set runtime.device: cpu"
            )
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Name a device for records: `cpu`, or `cuda` with the GPU's model."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Choose the dtype of frozen weights and matrix products.

    Args:
        precision: `bf16`, `fp32`, or `auto`: bf16 where the hardware multiplies it natively.
        device: that computes.
    """
    if precision != "auto":
        return DTYPES[precision]
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else _cpu_multiplies_bf16()
    return torch.bfloat16 if native else torch.float32


def _cpu_multiplies_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def mixed_precision(precision: str, device: torch.device) -> AbstractContextManager:
    """Give autocast to `compute_dtype`; for fp32, a context that does nothing."""
    dtype = compute_dtype(precision, device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def free_memory(device: torch.device) -> int:
    """Measure the memory that is free for tensors, of the GPU or of the machine, in bytes."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available


def attention_kind(device: torch.device) -> str:
    """Name the implementation of attention for transformers.

    On a CPU, attention is blockwise (`model/attention.py`): nothing is computed that the mask of a packed row would
    hide. On a GPU, where many small products would wait for each other, torch's fused kernel takes the mask as a
    tensor; a training whose layers are compiled changes to attention in tiles (`model/flex.py`).
    """
    return "sdpa" if device.type == "cuda" else "triptych_blockwise"


def encoder_batch(device: torch.device) -> int:
    """Choose the batch size of a frozen encoder: few images on a CPU, so that activations stay in its caches."""
    return 64 if device.type == "cuda" else 4


def cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_threads(device: torch.device) -> int:
    """Choose the number of threads that decode images: the cores that the encoder leaves, at least 1, at most 8."""
    busy = 1 if device.type == "cuda" else torch.get_num_threads()
    return min(max(cores() - busy, 1), 8)
