"""The driver and NVML, before anything is copied."""

import ctypes
import importlib

import pytest

from nodeserve.device.cuda_driver import FD_HANDLES_SUPPORTED, VMM_SUPPORTED
from nodeserve.device.cuda_vmm import VmmMemory
from nodeserve.errors import DeviceError
from tests.support.nvml_fields import FakeNvmlFields, missing_fields

pytestmark = pytest.mark.gpu


@pytest.mark.twin(
    "tests/device/test_cuda_driver.py::test_gpus_are_listed_in_the_masks_order_with_the_uuids_that_nvml_writes"
)
def test_driver_and_devices(gpu, record_property):
    """driver, devices, attributes"""
    context = gpu.context()
    driver = context.driver
    record_property("CUDA of the driver", driver.version())
    record_property("GPUs", ", ".join(device.name for device in driver.devices()))
    record_property("PCI", context.device.pci)
    has = {name: driver.has(name) for name in ("cuMemcpyBatchAsync_v2", "cuMemcpyBatchAsync")}
    record_property("batched copies", next((n for n, there in has.items() if there), "none"))
    vmm = [driver.attribute(0, a) for a in (VMM_SUPPORTED, FD_HANDLES_SUPPORTED)]
    record_property("VMM, by descriptor", vmm)
    assert context.uuid.startswith("GPU-")
    assert len(context.uuid) == 40


@pytest.mark.twin(
    "tests/device/test_cuda_driver.py::test_every_call_has_a_context_on_any_thread_and_leaves_none_behind"
)
def test_contexts(gpu, record_property):
    """a call without a context is refused, with one it works"""
    context = gpu.context()
    address = context.allocate(1 << 20)
    base, size = context.allocation(address + 1000)
    record_property("allocation of 1 MiB", size)
    assert base <= address < base + size
    with pytest.raises(DeviceError) as caught:
        context.driver.call("cuMemFree_v2", ctypes.c_uint64(address))
    record_property("without a context", caught.value.code)
    context.free(address)


@pytest.mark.twin(
    "tests/device/test_cuda_vmm.py::test_memory_is_rounded_up_and_shared_by_its_descriptor"
)
def test_vmm_memory(gpu, record_property):
    """memory by file descriptor can be made"""
    memory = VmmMemory(gpu.context(), 3 << 20)
    record_property("3 MiB become", memory.num_bytes)
    memory.close()


@pytest.mark.twin("tests/conformance/test_gpu_check.py::test_fields_that_nvml_lacks_are_named")
def test_nvml_fields(gpu, record_property):
    """NVML's fields are there"""
    nvml = FakeNvmlFields() if gpu.is_fake else importlib.import_module("pynvml")
    nvml.nvmlInit()
    missing = missing_fields(nvml, gpu.uuids[0])
    record_property("driver", nvml.nvmlSystemGetDriverVersion())
    record_property("missing", "; ".join(missing) or "none")
    needed = [name for name in missing if name.startswith(("power", "memory", "utilisation"))]
    assert not needed
