import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodeserve.device.base import XidSeen
from nodeserve.device.nvml import Nvml
from nodeserve.errors import DeviceError, DeviceLostError


def test_nobody_finds_the_fake_library_by_name_once_it_is_loaded(nvml, fake_nvml):
    """Else vLLM would take this machine for one with GPUs."""
    loaded = ctypes.CDLL(str(fake_nvml.library))
    try:
        real = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return
    assert real._handle != loaded._handle


def test_nvidia_ml_py_runs_unmodified_where_the_library_is_found_by_name(fake_nvml):
    program = (
        "import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(3);"
        "print(n.nvmlDeviceGetCount(), n.nvmlDeviceGetName(h), n.nvmlDeviceGetUUID(h),"
        " n.nvmlDeviceGetPciInfo(h).busId, n.nvmlSystemGetDriverVersion())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **fake_nvml.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    name, uuid = "NVIDIA H100 80GB HBM3", fake_nvml.uuid(3)
    assert done.stdout.strip() == f"8 {name} {uuid} 00000000:49:00.0 580.95.05"


def test_the_child_that_lists_gpus_finds_those_of_the_library(fake_nvml):
    done = subprocess.run(
        [sys.executable, "-m", "nodeserve.device.nvml_child"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **fake_nvml.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("GPU-fa4e") == 8


def test_a_library_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DeviceError, match="load the NVIDIA driver"):
        Nvml(str(tmp_path / "libnvidia-ml.so.1"))


def test_xids_are_told_with_their_gpu_from_the_opening_on(nvml, fake_nvml):
    fake_nvml.xid(2, 13)
    for index in (2, 5):
        nvml.open_gpu(fake_nvml.uuid(index), index)
    assert nvml.take_xids() == []
    fake_nvml.xid(5, 94)
    fake_nvml.xid(3, 79)
    fake_nvml.xid(2, 48)
    assert nvml.take_xids() == [
        XidSeen(number=94, source="nvml", text="", meter=fake_nvml.uuid(5)),
        XidSeen(number=48, source="nvml", text="", meter=fake_nvml.uuid(2)),
    ]
    assert nvml.take_xids() == []


def test_a_gpu_that_is_lost_from_the_beginning_is_there_and_says_so(nvml, fake_nvml):
    fake_nvml.set(4, lost=1)
    fake_nvml.take_away(7)
    lost = [nvml.open_gpu(fake_nvml.uuid(index), index) for index in (4, 7)]
    assert [gpu.meter.meter for gpu in lost] == [fake_nvml.uuid(4), fake_nvml.uuid(7)]
    for gpu in lost:
        for read in (gpu.read_now, gpu.read_state, gpu.read_condition):
            with pytest.raises(DeviceLostError, match=gpu.meter.meter):
                read()


def test_a_driver_that_refuses_for_another_reason_is_an_error(nvml, fake_nvml):
    fake_nvml.set(1, error=999)
    with pytest.raises(DeviceError, match="cannot be opened"):
        nvml.open_gpu(fake_nvml.uuid(1), 1)
