"""What is particular to GPU memory that is shared by IPC handles."""

import threading

import pytest

from nodeserve.errors import DeviceError, PeerError
from nodeserve.kv.layout import CopyRun
from nodeserve.transfer.cuda_ipc import CudaIpcImporter, export_pool
from tests.conformance.transfer.conftest import make_rig
from tests.conformance.transfer.rig import POOL_BYTES
from tests.support.fake_driver import FakeControls, fake_uuid
from tests.support.pool_owner import OwnPool, pattern

KIB = 1 << 10


def test_copies_are_the_same_with_an_older_driver(aged_rig):
    owner = aged_rig.owner()
    owner.fill(3)
    pool = aged_rig.open(owner)
    pool.copy([CopyRun(i * KIB, (9 - i) * KIB, KIB) for i in range(10)])
    theirs = pattern(3, 10 * KIB)
    assert aged_rig.own.read(0, KIB) == theirs[9 * KIB :]
    assert aged_rig.own.read(9 * KIB, KIB) == theirs[:KIB]
    pool.close()


def test_an_allocation_is_mapped_once_however_often_it_is_opened(ipc_rig):
    owner = ipc_rig.owner()
    pools = [ipc_rig.open(owner) for _ in range(3)]
    assert ipc_rig.importer.mappings.num_mapped == 1
    assert len({pool._address for pool in pools}) == 1
    pools.pop().close()
    pools.pop().close()
    assert ipc_rig.importer.mappings.num_mapped == 1
    pools.pop().close()
    assert ipc_rig.importer.mappings.num_mapped == 0


def test_a_second_open_by_the_driver_itself_gives_the_same_address_and_counts(ipc_rig):
    owner = ipc_rig.owner()
    context = ipc_rig.own.context
    token = bytes.fromhex(owner.handle["handle"])
    first, second = context.open_ipc(token), context.open_ipc(token)
    assert first == second
    context.close_ipc(first)
    assert context.allocation(first)[0] == first
    context.close_ipc(first)
    with pytest.raises(DeviceError):
        context.allocation(first)


def test_a_copy_from_an_ended_owner_is_refused_before_it_touches_the_device(ipc_rig):
    owner = ipc_rig.owner()
    pool = ipc_rig.open(owner)
    owner.kill()
    with pytest.raises(PeerError, match="ended before a copy"):
        pool.copy([CopyRun(0, 0, KIB)])
    ipc_rig.own.read(0, KIB)  # the device still works
    pool.close()


def _copy_while_the_owner_dies(rig):
    controls = FakeControls(rig.library)
    owner = rig.owner()
    owner.fill(41)
    pool = rig.open(owner)
    caught, asked = [], threading.Event()
    ask = rig.own.copier._on_device

    def submit(runs, stream):
        ask(runs, stream)
        asked.set()

    rig.own.copier._on_device = submit

    def copy():
        try:
            pool.copy([CopyRun(0, 0, KIB)])
        except PeerError as error:
            caught.append(error)

    controls.hold()
    thread = threading.Thread(target=copy)
    thread.start()
    assert asked.wait(10)
    owner.kill()
    controls.let_go()
    thread.join()
    return pool, caught


def test_an_owner_that_ends_under_a_copy_fails_it_though_the_bytes_were_there(ipc_rig, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_EXPORTER_DEATH", "readable")
    pool, (error,) = _copy_while_the_owner_dies(ipc_rig)
    assert "ended" in str(error)
    pool.close()


def test_an_owner_that_ends_under_a_copy_may_break_the_device_and_the_copy_says_so(ipc_rig):
    pool, caught = _copy_while_the_owner_dies(ipc_rig)
    assert len(caught) == 1
    # A broken device fails every call that follows; nothing may hide that.
    with pytest.raises(DeviceError, match="this process must be replaced"):
        ipc_rig.own.context.stream()
    pool.close()
    ipc_rig.own.copier.close()


def test_memory_of_a_gpu_that_is_hidden_here_is_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", fake_uuid(3))
    with make_rig("cuda_ipc", tmp_path) as rig:
        owner = rig.owner(CUDA_VISIBLE_DEVICES=f"{fake_uuid(1)},{fake_uuid(3)}")
        assert (rig.own.context.uuid, owner.handle["uuid"]) == (fake_uuid(3), fake_uuid(1))
        owner.fill(51)
        pool = rig.open(owner)
        pool.copy([CopyRun(0, 0, KIB)])
        assert rig.own.read(0, KIB) == pattern(51, KIB)
        pool.close()


@pytest.mark.parametrize("mask", ["0,1", "1,0", fake_uuid(1)])
def test_gpus_are_told_apart_by_uuid_however_they_are_numbered(tmp_path, monkeypatch, mask):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    with make_rig("cuda_ipc", tmp_path) as rig:
        copied = []
        copier = rig.own.copier
        copier._batch = lambda *_: copied.append("between GPUs")
        copier._on_device = lambda *_: copied.append("within one")
        for device in (0, 1):
            pool = rig.open(rig.owner(CUDA_VISIBLE_DEVICES=fake_uuid(device)))
            pool.copy([CopyRun(0, 0, KIB)])
            pool.close()
        here = int(rig.own.context.uuid == fake_uuid(1))
        expected = ["between GPUs", "between GPUs"]
        expected[here] = "within one"
        assert copied == expected


def test_gpus_without_a_path_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_NO_P2P", "0-1")
    with make_rig("cuda_ipc", tmp_path) as rig:
        owner = rig.owner(CUDA_VISIBLE_DEVICES="1")
        with pytest.raises(PeerError, match=f"no direct path to {fake_uuid(1)}"):
            rig.open(owner)


def test_a_hidden_gpu_without_a_path_is_refused_by_the_driver_and_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_NO_P2P", "all")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with make_rig("cuda_ipc", tmp_path) as rig:
        owner = rig.owner(CUDA_VISIBLE_DEVICES="1")
        with pytest.raises(DeviceError, match=r"217.*cannot read each other"):
            rig.open(owner)
        assert rig.importer.mappings.num_mapped == 0


def test_its_own_handle_is_refused_in_words(ipc_rig):
    handle = ipc_rig.own.handle()
    with pytest.raises(PeerError, match="handed its own GPU memory"):
        ipc_rig.importer.open(handle)
    with pytest.raises(DeviceError, match="this process's own"):
        ipc_rig.own.context.open_ipc(bytes.fromhex(handle["handle"]))


def test_an_open_that_fails_leaves_nothing_behind_and_may_be_tried_again(ipc_rig):
    controls = FakeControls(ipc_rig.library)
    owner = ipc_rig.owner()
    controls.fail("cuIpcOpenMemHandle", 2)
    with pytest.raises(DeviceError, match=r"cuIpcOpenMemHandle_v2 failed with 2"):
        ipc_rig.open(owner)
    assert ipc_rig.importer.mappings.num_mapped == 0
    ipc_rig.open(owner).close()


def test_copies_that_are_refused_are_an_error_and_the_next_ones_work(ipc_rig):
    controls = FakeControls(ipc_rig.library)
    owner = ipc_rig.owner(CUDA_VISIBLE_DEVICES="1")  # by copy engine
    owner.fill(61)
    pool = ipc_rig.open(owner)
    controls.fail("cuMemcpyBatchAsync", 999)
    with pytest.raises(DeviceError, match="cuMemcpyBatchAsync"):
        pool.copy([CopyRun(0, 0, KIB)])
    pool.copy([CopyRun(0, 0, KIB)])
    assert ipc_rig.own.read(0, KIB) == pattern(61, KIB)
    pool.close()


@pytest.mark.parametrize(
    "change",
    [
        {"handle": "zz" * 64},
        {"handle": "00" * 63},
        {"handle": "00" * 64},
        {"handle": 7},
        {"uuid": None},
        {"offset": -1},
        {"offset": POOL_BYTES},
        {"bytes": 0},
        {"started": 1},
    ],
)
def test_what_is_no_handle_of_an_allocation_is_refused(ipc_rig, change):
    owner = ipc_rig.owner()
    with pytest.raises(PeerError):
        ipc_rig.importer.open({**owner.handle, **change})
    assert ipc_rig.importer.mappings.num_mapped == 0


def test_a_pool_across_allocations_cannot_be_exported(ipc_rig):
    own = ipc_rig.own
    with pytest.raises(PeerError, match="expandable_segments"):
        type(own).handle(_Wider(own))


class _Wider:
    def __init__(self, own: OwnPool) -> None:
        self._memory = None
        self.context, self.address, self.num_bytes = own.context, own.address, own.num_bytes + 1


def test_memory_without_a_handle_is_refused_with_the_reason(vmm_rig):
    own = vmm_rig.own
    importer = CudaIpcImporter(own.context, own.copier, own.address, POOL_BYTES)
    assert importer.uuid == own.context.uuid
    with pytest.raises(DeviceError, match="expandable segments and of sleep mode"):
        export_pool(own.context, own.address, POOL_BYTES)
