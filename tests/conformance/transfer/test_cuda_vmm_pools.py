"""What is particular to GPU memory that is shared by file descriptor."""

import pytest

from nodeserve.device.cuda_vmm import VmmMemory
from nodeserve.errors import DeviceError, PeerError
from nodeserve.kv.layout import CopyRun
from tests.conformance.transfer.conftest import make_rig
from tests.support.fake_driver import FakeControls
from tests.support.pool_owner import pattern

KIB = 1 << 10


def test_what_is_mapped_can_be_read_when_its_owner_has_ended(vmm_rig):
    owner = vmm_rig.owner()
    owner.fill(3)
    pool = vmm_rig.open(owner)
    owner.kill()
    pool.copy([CopyRun(0, 0, KIB)])
    assert vmm_rig.own.read(0, KIB) == pattern(3, KIB)
    assert not pool.is_current()
    pool.close()


def test_its_own_handle_is_refused_in_words(vmm_rig):
    with pytest.raises(PeerError, match="handed its own GPU memory"):
        vmm_rig.importer.open(vmm_rig.own.handle())


def test_a_descriptor_that_is_not_there_is_refused(vmm_rig):
    owner = vmm_rig.owner()
    with pytest.raises(PeerError, match="does not give up its descriptor 999"):
        vmm_rig.importer.open({**owner.handle, "fd": 999})


def test_a_descriptor_of_something_else_is_refused(vmm_rig):
    owner = vmm_rig.owner()
    with pytest.raises(PeerError):
        vmm_rig.importer.open({**owner.handle, "fd": 0})


def test_a_device_without_such_memory_is_refused_by_name(tmp_path, monkeypatch):
    with make_rig("cuda_ipc", tmp_path) as rig:
        monkeypatch.setenv("FAKE_CUDA_NO_VMM", "1")
        with pytest.raises(DeviceError, match="use the transport cuda_ipc"):
            VmmMemory(rig.own.context, KIB)


@pytest.mark.parametrize(
    "function", ["cuMemCreate", "cuMemExportToShareableHandle", "cuMemMap", "cuMemSetAccess"]
)
def test_memory_that_cannot_be_made_is_an_error_that_names_the_call(vmm_rig, function):
    FakeControls(vmm_rig.library).fail(function, 2)
    with pytest.raises(DeviceError, match=function):
        VmmMemory(vmm_rig.own.context, KIB)
    VmmMemory(vmm_rig.own.context, KIB).close()
