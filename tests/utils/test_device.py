"""Which device computes, where there is a GPU, where there is none, and where there should be one."""

import pytest
import torch
from triptych.errors import TriptychError
from triptych.utils import device

VARIABLES = (*device.GIVEN, device.WANTED)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[True, False], ids=["gpu", "no gpu"])
def gpu(request, monkeypatch):
    """A stand-in for a GPU that torch can use, or for none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L40S")
    return request.param


@pytest.mark.parametrize("wanted", [None, "auto"])
def test_a_gpu_is_used_where_there_is_one(gpu, monkeypatch, wanted):
    if wanted:
        monkeypatch.setenv(device.WANTED, wanted)
    found = device.best_device()
    assert device.device_name(found) == ("cuda (NVIDIA L40S)" if gpu else "cpu")


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_JOB_GPUS", "0"), ("SLURM_STEP_GPUS", "2,3"), ("CUDA_VISIBLE_DEVICES", "GPU-1f"), (device.WANTED, "gpu")],
)
def test_a_job_that_should_have_a_gpu_does_not_compute_on_the_cpu(gpu, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    if gpu:
        assert device.best_device().type == "cuda"
    else:
        asked = "runtime.device asks for one" if value == "gpu" else f"{name}={value}"
        with pytest.raises(TriptychError, match=rf"can use no GPU here, though {asked}; .*runtime\.device: cpu"):
            device.best_device()


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_variables_that_name_no_gpu_ask_for_none(gpu, monkeypatch, value):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert device.best_device().type == ("cuda" if gpu else "cpu")


def test_the_cpu_is_used_where_it_is_wanted(gpu, monkeypatch):
    monkeypatch.setenv(device.WANTED, "cpu")
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    assert device.best_device().type == "cpu" and not device.has_gpu()
