"""The threads of a directory: what they find wrong, what they move, and what a fault ends."""

import errno
import itertools
import threading

import pytest

from nodeserve.clock import ManualClock, MonotonicClock
from nodeserve.transfer.disk_options import DiskOptions
from nodeserve.transfer.disk_recover import CHECKPOINT
from tests.support.disk import (
    SEGMENT_BYTES,
    Call,
    Slots,
    StoreDriver,
    key_of,
    payload_of,
    watched_by,
)

MAX_BYTES = 1 << 20
RECORD_BYTES = 12288
"""Of the driver's blocks of 5,000 bytes."""


@pytest.fixture
def driver(tmp_path):
    made = StoreDriver(tmp_path, max_bytes=MAX_BYTES)
    yield made
    made.close()


def segment_of(tmp_path, number=1):
    return tmp_path / f"segment-{number:016d}"


def change(path, offset, change_byte):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([change_byte(byte)]))


@pytest.mark.parametrize(
    ("offset", "kind"),
    [
        (0, "header"),  # magic
        (8, "header"),  # version
        (12, "header"),  # payload's checksum
        (40, "header"),  # namespace
        (72, "header"),  # key
        (104, "header"),  # header's checksum
        (4096, "payload"),
        (4096 + 4999, "payload"),
    ],
)
@pytest.mark.parametrize("record", [0, 2, 4])
def test_a_flipped_byte_is_a_miss_of_its_kind_and_others_are_whole(
    driver, tmp_path, record, offset, kind
) -> None:
    assert all(driver.put(number) for number in range(5))
    change(segment_of(tmp_path), record * RECORD_BYTES + offset, lambda byte: byte ^ 0x10)
    assert [number for number in range(5) if not driver.get(number)] == [record]
    assert driver.store.stats().misses == {kind: 1}
    assert driver.has(*range(5)) == [number for number in range(5) if number != record]
    assert driver.put(record)
    assert driver.get(record)


def test_a_byte_of_the_padding_does_not_count(driver, tmp_path) -> None:
    assert driver.put(1)
    change(segment_of(tmp_path), 4096 + 5000, lambda byte: byte ^ 1)
    change(segment_of(tmp_path), 200, lambda byte: byte ^ 1)
    assert driver.get(1)


def test_a_file_cut_short_under_the_store_is_a_miss(driver, tmp_path) -> None:
    assert driver.put(1)
    assert driver.put(2)
    with segment_of(tmp_path).open("r+b") as file:
        file.truncate(RECORD_BYTES + 4096)
    assert (driver.get(1), driver.get(2)) == (True, False)
    assert driver.store.stats().misses == {"truncated": 1}


def test_a_block_asked_for_with_another_length_is_a_miss(driver) -> None:
    assert driver.put(1)
    driver.length = 5001
    assert not driver.get(1)
    assert driver.put(1)
    driver.length = 9000
    assert not driver.get(1)
    assert driver.store.stats().misses == {"length": 2}


def test_many_of_the_smallest_blocks_asked_for_at_once_are_all_right(tmp_path) -> None:
    options = DiskOptions(segment_bytes=4 << 20, num_readers=1, read_batch_bytes=64 << 10)
    driver = StoreDriver(tmp_path, max_bytes=32 << 20, length=1, options=options)
    assert all(driver.put(number) for number in range(300))
    slots, calls = Slots(300, 4096), [Call() for _ in range(300)]
    for number, call in enumerate(calls):
        assert driver.store.read(key_of(number), slots.at(number), 1, call)
    assert all(call.wait() for call in calls)
    assert [slots.get(number, 1) for number in range(300)] == [
        payload_of(number, 1) for number in range(300)
    ]
    driver.close()


def test_blocks_that_are_read_again_and_again_outlive_many_segments(driver) -> None:
    for number in range(200):
        assert driver.put(number)
        assert driver.get(0)
    assert 1 not in driver.has(*range(200))
    assert driver.store.stats().num_reinserted >= 1


def test_a_hot_record_that_is_not_whole_is_not_moved(driver, tmp_path) -> None:
    assert driver.put(0)
    assert driver.get(0)
    change(segment_of(tmp_path), 4096, lambda byte: byte ^ 1)
    assert all(driver.put(number) for number in range(1, 100))
    assert driver.has(0) == []
    assert driver.store.stats().num_reinserted == 0


class Gate:
    """Holds the first operation of a kind until it is opened."""

    def __init__(self, operation):
        self.operation = operation
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.seen = []

    def __call__(self, operation):
        self.seen.append(operation)
        if operation == self.operation and not self.reached.is_set():
            self.reached.set()
            assert self.opened.wait(30)


def test_a_segment_being_read_is_neither_renamed_nor_removed_under_the_reader(tmp_path) -> None:
    gate = Gate("read")
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES, open_files=watched_by(gate))
    assert driver.put(0)
    # The slot is the reader's own: the driver's other calls use others.
    read = Call()
    assert driver.store.read(key_of(0), driver.slots.at(3), driver.length, read)
    assert gate.reached.wait(30)
    numbers = itertools.count(1)
    while driver.store.stats().num_evicted < 1:
        # The writer may have to wait for the reader's segment: do not wait for it.
        driver.store.write(key_of(next(numbers)), driver.slots.at(0), driver.length, Call())
    assert segment_of(tmp_path).exists()
    gate.opened.set()
    assert read.wait()
    assert driver.slots.get(3, driver.length) == payload_of(0, driver.length)
    driver.close()


class Broken:
    """Answers an operation with an error from now on."""

    def __init__(self):
        self.operation = ""
        self.number = 0

    def break_now(self, operation, number):
        self.operation, self.number = operation, number

    def __call__(self, operation):
        if operation == self.operation:
            raise OSError(self.number, "as the test wants", "some file")


@pytest.mark.parametrize("operation", ["write", "allocate", "rename", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.ENOENT])
def test_any_error_of_the_system_turns_the_tier_off_and_serving_goes_on(
    tmp_path, operation, number
) -> None:
    broken = Broken()
    driver = StoreDriver(
        tmp_path,
        max_bytes=MAX_BYTES,
        open_files=watched_by(broken),
        clock=MonotonicClock(),
        options=DiskOptions(
            segment_bytes=SEGMENT_BYTES, checkpoint_interval_s=0.0, check_interval_s=0.01
        ),
    )
    assert driver.put(0)
    broken.break_now(operation, number)
    stored = 0
    while driver.put(stored + 1):
        stored += 1
    (lost,) = driver.lost(1)
    assert (lost.directory, lost.num_left) == (str(tmp_path), 0)
    assert "as the test wants" in lost.reason
    assert driver.store.state == "off"
    assert (driver.put(5000), driver.get(0), driver.has(0)) == (False, False, [])
    assert driver.store.stats().refused["off"] >= 2
    driver.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT])
def test_a_read_that_fails_is_a_miss_and_turns_the_tier_off(tmp_path, number) -> None:
    broken = Broken()
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES, open_files=watched_by(broken))
    assert driver.put(0)
    broken.break_now("read", number)
    assert not driver.get(0)
    assert [lost.num_left for lost in driver.lost(1)] == [0]
    assert driver.store.stats().misses == {"off": 1}
    driver.close()


def test_a_bug_in_a_thread_turns_the_tier_off_like_a_fault(tmp_path, caplog) -> None:
    armed = []

    def hook(operation):
        if operation in armed:
            raise RuntimeError("a bug")

    files = watched_by(hook)
    for operation in ("write", "read", "allocate"):
        armed.clear()
        driver = StoreDriver(tmp_path / operation, max_bytes=MAX_BYTES, open_files=files)
        assert driver.put(0)
        armed.append(operation)
        while driver.put(len(armed)) and driver.get(0):
            armed.append("")
        assert len(driver.lost(1)) == 1
        driver.close()
    assert caplog.text.count("RuntimeError: a bug") == 3


def test_a_directory_that_is_moved_away_turns_the_tier_off_by_itself(tmp_path) -> None:
    path = tmp_path / "kv"
    options = DiskOptions(segment_bytes=SEGMENT_BYTES, check_interval_s=0.01)
    driver = StoreDriver(path, max_bytes=MAX_BYTES, options=options)
    path.rename(tmp_path / "elsewhere")
    assert "No such file" in driver.lost(1)[0].reason
    assert driver.store.state == "off"
    driver.close()


def test_the_index_is_written_when_it_is_time_and_has_changed(tmp_path) -> None:
    written = threading.Semaphore(0)

    def hook(operation):
        if operation == "replace":
            written.release()

    clock = ManualClock()
    driver = StoreDriver(
        tmp_path,
        max_bytes=MAX_BYTES,
        open_files=watched_by(hook),
        clock=clock,
        options=DiskOptions(
            segment_bytes=SEGMENT_BYTES, checkpoint_interval_s=60.0, check_interval_s=0.01
        ),
    )
    assert driver.put(0)
    assert not (tmp_path / CHECKPOINT).exists()
    clock.advance(60.0)
    assert written.acquire(timeout=30)
    driver.close()
    assert not written.acquire(blocking=False), "nothing had changed since"
