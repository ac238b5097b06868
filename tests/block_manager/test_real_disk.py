"""The block manager with the disk tier that it runs with."""

import time

from nodeserve.wire.kv_control import KvClear, KvDone
from nodeserve.wire.kv_tier import ABSENT
from nodeserve.wire.spawn import DiskTierSpec
from tests.block_manager.nodes import block_of


def start(nodes, tmp_path):
    directory = tmp_path / "real-disk"
    directory.mkdir()
    disk = DiskTierSpec(directories=(str(directory),), max_bytes=64 << 20)
    return nodes(disk=disk).start()


def test_blocks_outlive_host_memory_and_the_process_on_disk(nodes, tmp_path) -> None:
    node = start(nodes, tmp_path)
    one = node.engine(1).join()
    node.status_when(lambda status: len(status.tiers) == 2)
    one.store("a", "b")
    node.status_when(lambda status: status.tiers[1].stores == 2)
    assert node.ask(KvClear(listener="l"), KvDone).detail.startswith("2 blocks cleared")
    node.stop()
    node.start()
    two = node.engine(2).join()
    node.status_when(lambda status: len(status.tiers) == 2)
    found = two.look_up("a", "b", "c", deadline_s=time.monotonic() + 20)
    assert ABSENT not in found[:2]
    assert found[2] == ABSENT
    assert [two.read(slot) for slot in found[:2]] == [block_of(b"a-"), block_of(b"b-")]
    disk = node.status().tiers[1]
    assert (disk.promotions, disk.corrupt, disk.failure) == (2, 0, None)


def test_a_flipped_byte_on_disk_is_a_miss(nodes, tmp_path) -> None:
    node = start(nodes, tmp_path)
    one = node.engine(1).join()
    node.status_when(lambda status: len(status.tiers) == 2)
    one.store("a")
    node.status_when(lambda status: status.tiers[1].stores == 1)
    node.ask(KvClear(listener="l"), KvDone)
    for path in (tmp_path / "real-disk").rglob("*"):
        if path.is_file() and (at := path.read_bytes().find(block_of(b"a-"))) >= 0:
            with path.open("r+b") as file:
                file.seek(at + 5000)
                file.write(b"!")
    assert one.look_up("a", deadline_s=time.monotonic() + 20) == [ABSENT]
    disk = node.status().tiers[1]
    assert (disk.corrupt, disk.failed_promotions, disk.failure) == (1, 1, None)
