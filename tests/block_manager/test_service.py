"""Two engines and one block manager, over its sockets."""

import time

import pytest

from nodeserve.errors import PeerError
from nodeserve.wire import control
from nodeserve.wire.kv_control import (
    BlockManagerHeartbeat,
    BlockManagerReady,
    KvClear,
    KvDone,
)
from nodeserve.wire.kv_tier import ABSENT, KvLookup, KvPublish, KvRelease
from nodeserve.wire.spawn import DiskTierSpec
from tests.block_manager.nodes import BLOCK_BYTES, STRIDE, block_of
from tests.kv.tiers import key, keys


def test_a_block_that_one_engine_stores_is_read_by_another(node) -> None:
    one, two = node.engine(1).join(), node.engine(2).join()
    assert (one.welcome.slot_stride, one.welcome.num_slots) == (STRIDE, 2 * (2**20 // STRIDE))
    slots = one.reserve("a", "b")
    assert two.look_up("a", "b") == [ABSENT, ABSENT]
    for slot, fill in zip(slots, (b"first", b"second"), strict=True):
        one.write(slot, fill)
    one.publish(slots)
    directory = two.directory()
    node.status_when(lambda status: status.tiers[0].stores == 2)
    found = two.look_up("a", "b", "c")
    assert found == [*slots, ABSENT]
    before = directory.require(found[1], key("b"))
    copied = two.read(found[1])
    assert directory.require(found[1], key("b")) == before
    assert copied == block_of(b"second")
    directory.close()
    node.stop()


def test_a_reader_whose_block_was_replaced_finds_out(node) -> None:
    one = node.engine(1).join()
    one.store("a")
    directory = one.directory()
    (slot,) = one.look_up("a")
    before = directory.require(slot, key("a"))
    one.release()
    for number in range(3):
        one.store(*range(number * 100, number * 100 + 80))
    with pytest.raises(PeerError, match=f"slot {slot} does not hold block"):
        directory.require(slot, key("a"))
    assert before.key == key("a")
    directory.close()


def test_ten_thousand_keys_are_looked_up_in_one_message(node) -> None:
    one = node.engine(1).join()
    stored = one.store(*range(80))
    found = one.look_up(*range(10_000))
    assert found == stored + [ABSENT] * 9920
    status = node.status()
    assert (status.looked_up_keys, status.lookups) == (10_000, 1)
    assert status.lookup_us_per_key is not None


def test_an_engine_that_dies_lets_go_of_pins_and_what_it_was_writing_is_kept_from_use(node) -> None:
    one, two = node.engine(1).join(), node.engine(2).join()
    one.store("a")
    two.look_up("a")
    two.reserve("b", "c")
    host = node.status().tiers[0]
    assert (host.pinned, host.writing, host.quarantined) == (1, 2, 0)
    two.close()
    node.gone(2)
    host = node.status().tiers[0]
    assert (host.pinned, host.writing, host.quarantined) == (0, 0, 2)
    assert [load.worker for load in node.status().engines] == ["w1"]
    host = node.status_when(lambda status: not status.tiers[0].quarantined).tiers[0]
    assert host.used_slots == 1


def test_what_an_engine_holds_that_hangs_stays_until_it_is_declared_dead(node) -> None:
    hung, one = node.engine(1).join(), node.engine(2).join()
    hung.store("kept")
    (slot,) = hung.look_up("kept")
    reserved = hung.reserve("half")
    for number in range(4):
        one.store(*range(number * 100, number * 100 + 80))
    assert one.look_up("kept", "half") == [slot, ABSENT]
    one.release()
    node.gone(1)
    node.status_when(lambda status: len(status.engines) == 1)  # its sockets keep no order
    for number in range(4, 8):
        one.store(*range(number * 100, number * 100 + 80))
    assert one.look_up("kept") == [ABSENT]
    assert reserved


def test_an_engine_that_never_reads_its_answers_holds_nothing_beyond_a_bound(node) -> None:
    hung, one = node.engine(1).join(), node.engine(2).join()
    one.store("a")
    for number in range(12_000):
        hung.say(KvLookup(call_id=10 + number, listener="l", keys=keys("a")))
    status = node.status_when(lambda status: status.lookups >= 4000)
    assert status.engines[0].lookups <= 4096
    assert one.look_up("a") != [ABSENT]


def test_garbage_is_dropped_and_counted(node) -> None:
    one = node.engine(1).join()
    one.send_raw(b"\xc1")
    one.send_raw(b"", b"")
    one.send_raw(b"\x91" * 10_000)
    one.say(KvLookup(call_id=1, listener="l", keys=b"short"))
    one.say(KvPublish(slots=b"123"))
    one.say(KvLookup(call_id=2, listener="l", keys=bytes(32 * 70_000)))
    odd = node.engine("not-a-number")
    odd.send_raw(b"x")
    one._call_id = 10
    assert one.look_up("a") == [ABSENT]
    assert node.status_when(lambda status: status.rejected_frames == 7)
    assert node.process.poll() is None


def test_what_engines_copied_is_added_up_with_its_speed(node) -> None:
    one, two = node.engine(1).join(), node.engine(2).join()
    one.say(KvPublish(slots=b"", written_bytes=3000, written_us=1))
    for engine in (one, two):
        engine.say(KvRelease(call_ids=(), read_bytes=10**9, read_us=250_000))
    # Neither can be: the whole message is dropped.
    one.say(KvRelease(call_ids=(), read_bytes=-1, read_us=1))
    one.say(KvRelease(call_ids=(), read_bytes=1 << 60))
    (host,) = node.status_when(
        lambda status: status.rejected_frames == 2 and status.tiers[0].read_bytes == 2 * 10**9
    ).tiers
    assert (host.read_s, host.read_gbps) == (0.5, 4.0)
    assert (host.written_bytes, host.written_s, host.written_gbps) == (3000, 1e-6, 3.0)


def test_it_says_again_what_holds_and_that_it_lives(node) -> None:
    assert node.hear(BlockManagerHeartbeat).next_s > 0
    assert node.ask(control.SayAgain(), BlockManagerReady).pid == node.process.pid
    node.say(control.DrainNode())
    assert node.status_when(lambda status: status.rejected_frames == 1)


def test_quotas_and_a_log_are_as_the_spec_says(nodes, tmp_path) -> None:
    node = nodes(quotas={"small": 0.05}, log_path=str(tmp_path / "log")).start()
    one = node.engine(1).join()
    slots = one.reserve(*range(20), listener="small")
    assert len([slot for slot in slots if slot != ABSENT]) == 8
    one.look_up("a", listener="chat")
    assert node.status().listeners[0].quota == 0.05
    node.stop()
    text = (tmp_path / "log").read_text()
    assert text.startswith("nodeserve-kv-log 1 170 10000\n")
    assert [line.split()[1] for line in text.splitlines()[1:]] == ["S", "L"]


def test_blocks_come_back_from_disk_when_the_host_tier_has_lost_them(nodes) -> None:
    node = nodes(disk=DiskTierSpec(directories=("fake",), max_bytes=1 << 20)).start()
    one = node.engine(1).join()
    node.status_when(lambda status: len(status.tiers) == 2)
    one.store("a", "b")
    node.status_when(lambda status: status.tiers[1].stores == 2)
    assert node.ask(KvClear(listener="l"), KvDone).detail.startswith("2 blocks cleared")
    found = one.look_up("a", "b", "c", deadline_s=time.monotonic() + 10)
    assert ABSENT not in found[:2]
    assert found[2] == ABSENT
    assert one.read(found[1]) == block_of(b"b-")
    disk = node.status().tiers[1]
    assert (disk.hits, disk.misses, disk.promotions, disk.corrupt) == (2, 1, 2, 2)
    assert disk.used_bytes == 2 * BLOCK_BYTES
    node.ask(KvClear(), KvDone)
    assert node.status().tiers[1].used_bytes == 0


def test_a_disk_that_is_lost_is_said_so_and_serving_goes_on(nodes) -> None:
    node = nodes(disk=DiskTierSpec(directories=("lost",), max_bytes=1 << 20)).start()
    one = node.engine(1).join()
    node.status_when(lambda status: len(status.tiers) == 2 and status.tiers[1].failure)
    assert node.status().tiers[1].failure == "lost: no such directory"
    one.store("a")
    assert one.look_up("a", deadline_s=time.monotonic() + 10) != [ABSENT]
    assert "disk_tier_off" in node.stop()
