"""The disk tier as the block manager sees it."""

import errno
import subprocess
import threading
import time

import pytest

from nodeserve.errors import ConfigError, PeerError
from nodeserve.transfer.disk import open_disk_store
from nodeserve.transfer.disk_options import DiskOptions
from nodeserve.transfer.disk_store import DirectoryLost, DiskStore
from nodeserve.wire.spawn import DiskTierSpec
from tests.support.disk import (
    NAMESPACE,
    OPTIONS,
    SEGMENT_BYTES,
    Call,
    StoreDriver,
    WatchedFiles,
    key_of,
    payload_of,
    used_bytes,
    watched_by,
)

MAX_BYTES = 1 << 20


def test_blocks_come_back_as_they_were(tmp_path) -> None:
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES)
    store: DiskStore = driver.store
    assert store.contains([key_of(1)]) == [False]
    assert driver.put(1)
    assert store.contains([key_of(0), key_of(1)]) == [False, True]
    assert driver.get(1)
    assert not driver.get(0)
    driver.close()
    assert (store.state, driver.put(2), store.contains([key_of(1)])) == ("off", False, [False])


@pytest.mark.parametrize("num_directories", [1, 2, 3])
def test_the_bound_holds_at_every_step_of_a_long_life(tmp_path, num_directories) -> None:
    """The bound is that of ``du``, before and after whatever is done to a file."""
    paths = [tmp_path / f"kv{number}" for number in range(num_directories)]
    max_bytes = num_directories * 700_000
    seen: list[int] = []

    def account(_operation: str) -> None:
        seen.append(sum(used_bytes(path) for path in paths if path.exists()))

    options = DiskOptions(
        segment_bytes=SEGMENT_BYTES, checkpoint_interval_s=0.0, check_interval_s=0.001
    )
    for life in range(3):
        driver = StoreDriver(
            *paths,
            max_bytes=max_bytes,
            length=4000,
            open_files=watched_by(account),
            options=options,
        )
        for number in range(life * 1000, life * 1000 + 300):
            assert driver.put(number)
            assert driver.get(number)
            account("between")
        driver.close()
        account("closed")
    assert max(seen) <= max_bytes
    assert max(seen) > 0.7 * max_bytes, "most of the bound is used"
    stats = driver.store.stats()
    assert stats.used_bytes <= stats.max_bytes <= max_bytes


def test_records_are_spread_evenly_and_found_wherever_they_are(tmp_path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    driver = StoreDriver(*paths, max_bytes=2 * MAX_BYTES)
    assert all(driver.put(number) for number in range(20))
    assert [d.num_records for d in driver.store.stats().directories] == [10, 10]
    assert all(driver.get(number) for number in range(20))
    driver.close()
    driver = StoreDriver(*paths, max_bytes=2 * MAX_BYTES)
    assert driver.has(*range(20)) == list(range(20))
    driver.close()


class BreaksFor:
    """Files of which those in one directory answer with an error, once told to."""

    def __init__(self, path):
        self.path = str(path)
        self.is_broken = False

    def __call__(self, path):
        return WatchedFiles(path, self._break if path == self.path else lambda _operation: None)

    def _break(self, operation):
        if self.is_broken and operation == "read":
            raise OSError(errno.EIO, "a cable was pulled")


def test_one_directory_of_two_is_lost_alone_and_the_tier_goes_on(tmp_path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    files = BreaksFor(paths[0])
    driver = StoreDriver(*paths, max_bytes=2 * MAX_BYTES, open_files=files)
    assert all(driver.put(number) for number in range(20))
    files.is_broken = True
    found = [number for number in range(20) if driver.get(number)]
    assert len(found) == 10
    assert driver.lost(1) == [
        DirectoryLost(str(paths[0]), "reading: a cable was pulled", num_left=1)
    ]
    assert driver.store.state == "open"
    assert driver.has(*range(20)) == found
    assert all(driver.put(number) for number in range(100, 110))
    assert all(driver.get(number) for number in range(100, 110))
    driver.close()


def test_a_directory_that_cannot_be_opened_is_lost_and_told_so(tmp_path) -> None:
    paths = [tmp_path / "missing" / "kv", tmp_path / "b"]
    driver = StoreDriver(*paths, max_bytes=2 * MAX_BYTES)
    (lost,) = driver.lost(1)
    assert (lost.directory, lost.num_left) == (str(paths[0]), 1)
    assert "No such file or directory" in lost.reason
    assert driver.put(1)
    assert driver.get(1)
    driver.close()


def test_a_tier_whose_only_directory_cannot_be_opened_is_off_from_the_start(tmp_path) -> None:
    (tmp_path / "file").write_text("not a directory")
    driver = StoreDriver(tmp_path / "file", max_bytes=MAX_BYTES)
    assert driver.lost(1)[0].num_left == 0
    assert driver.store.state == "off"
    assert not driver.put(1)
    assert not driver.get(1)
    assert driver.store.stats().refused == {"off": 2}
    driver.close()


def test_a_directory_that_cannot_be_looked_through_is_lost(tmp_path) -> None:
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES)
    assert driver.put(1)
    driver.close()
    (tmp_path / "checkpoint").unlink()
    files = BreaksFor(tmp_path)
    files.is_broken = True
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES, open_files=files)
    assert "looking for records" in driver.lost(1)[0].reason
    driver.close()


def test_two_stores_never_share_a_directory(tmp_path) -> None:
    driver = StoreDriver(tmp_path / "a", max_bytes=MAX_BYTES)
    with pytest.raises(PeerError, match="another process has this directory"):
        StoreDriver(tmp_path / "b", tmp_path / "a", max_bytes=2 * MAX_BYTES)
    driver.close()
    StoreDriver(tmp_path / "b", tmp_path / "a", max_bytes=2 * MAX_BYTES).close()


@pytest.mark.parametrize(
    ("directories", "max_bytes", "namespace", "words"),
    [
        ((), MAX_BYTES, NAMESPACE, "name one or more different ones"),
        (("a", "./a"), MAX_BYTES, NAMESPACE, "name one or more different ones"),
        (("a", "b"), 400_000, NAMESPACE, "4 are the least"),
        (("a",), MAX_BYTES, b"short", "a namespace of 5 bytes"),
    ],
)
def test_what_can_never_work_is_refused_before_anything_is_made(
    tmp_path, monkeypatch, directories, max_bytes, namespace, words
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = DiskTierSpec(directories=directories, max_bytes=max_bytes)
    with pytest.raises(ConfigError, match=words):
        open_disk_store(spec, namespace, on_lost=lambda _lost: None, options=OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "address"), [(b"short", 0), (b"k" * 32, 512)])
def test_a_caller_s_mistake_is_told_at_once(tmp_path, key, address) -> None:
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES)
    for method in (driver.store.read, driver.store.write):
        with pytest.raises(ValueError, match="32 bytes are needed"):
            method(key, address, 5000, Call())
    driver.close()


class Gate:
    """Holds every operation of one kind until it is opened."""

    def __init__(self, operation):
        self.operation = operation
        self.opened = threading.Event()

    def __call__(self, operation):
        if operation == self.operation:
            assert self.opened.wait(30)


def test_writes_and_reads_are_refused_when_too_many_wait_and_counted(tmp_path) -> None:
    gate = Gate("write")
    options = DiskOptions(segment_bytes=SEGMENT_BYTES, max_queued_writes=3, max_queued_reads=2)
    driver = StoreDriver(
        tmp_path, max_bytes=MAX_BYTES, options=options, open_files=watched_by(gate)
    )
    address = driver.slots.at(0)
    calls = [Call() for _ in range(5)]
    accepted = [
        driver.store.write(key_of(number), address, driver.length, call)
        for number, call in enumerate(calls)
    ]
    assert accepted == [True, True, True, False, False]
    assert driver.store.stats().queued_writes == 3
    gate.opened.set()
    assert all(call.wait() for call in calls[:3])
    gate.operation = "read"
    gate.opened.clear()
    reads = [Call() for _ in range(4)]
    accepted = [
        driver.store.read(key_of(0), driver.slots.at(1), driver.length, call) for call in reads
    ]
    assert accepted == [True, True, False, False]
    assert driver.store.stats().queued_reads == 2
    gate.opened.set()
    assert all(call.wait() for call in reads[:2])
    assert driver.store.stats().refused == {"writes_full": 2, "reads_full": 2}
    assert not any(call.outcomes for call in (*calls[3:], *reads[2:]))
    driver.close()


def test_clear_leaves_nothing_to_find_now_or_after_a_restart(tmp_path) -> None:
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES)
    assert all(driver.put(number) for number in range(30))
    driver.store.clear()
    assert driver.has(*range(30)) == []
    assert driver.put(100)
    driver.close()
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES)
    assert driver.has(*range(30), 100) == [100]
    driver.close()
    secret = payload_of(1, 5000)
    assert not any(secret in path.read_bytes() for path in tmp_path.iterdir())


def test_a_forgotten_block_is_contained_no_more_and_can_be_stored_again(tmp_path) -> None:
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES)
    assert driver.put(1)
    assert not driver.put(1), "it is there already"
    driver.store.forget([key_of(1), key_of(2)])
    assert driver.has(1) == []
    assert driver.put(1)
    assert driver.get(1)
    driver.close()


def test_close_writes_what_waits(tmp_path) -> None:
    gate = Gate("write")
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES, open_files=watched_by(gate))
    address = driver.slots.put(0, payload_of(0, driver.length))
    calls = [Call() for _ in range(10)]
    for number, call in enumerate(calls):
        assert driver.store.write(key_of(number), address, driver.length, call)
    closing = threading.Thread(target=driver.close)
    closing.start()
    gate.opened.set()
    closing.join(30)
    assert all(call.wait() for call in calls)
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES)
    assert driver.has(*range(10)) == list(range(10))
    driver.close()


def test_close_does_not_wait_for_a_disk_that_hangs_and_ends_what_waits(tmp_path) -> None:
    gate = Gate("write")
    options = DiskOptions(segment_bytes=SEGMENT_BYTES, num_writers=1, batch_records=1)
    driver = StoreDriver(
        tmp_path, max_bytes=MAX_BYTES, options=options, open_files=watched_by(gate)
    )
    calls = [Call() for _ in range(3)]
    for number, call in enumerate(calls):
        assert driver.store.write(key_of(number), driver.slots.at(0), driver.length, call)
    driver.store.close(0.2)
    assert [call.wait() for call in calls[1:]] == [False, False]
    gate.opened.set()
    assert calls[0].wait()


def test_a_full_file_system_turns_the_tier_off(tmp_path) -> None:
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        driver = StoreDriver(path, max_bytes=MAX_BYTES)
        number = 0
        while driver.put(number):
            number += 1
        assert "No space left on device" in driver.lost(1)[0].reason
        assert driver.store.state == "off"
        driver.close()
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_threads_of_every_kind_at_once_read_only_what_was_written(tmp_path) -> None:
    """Two directories, many segments' worth of blocks, readers racing writers and eviction."""
    paths = [tmp_path / "a", tmp_path / "b"]
    stop = threading.Event()
    wrong: list[str] = []
    drivers = StoreDriver(*paths, max_bytes=2 * MAX_BYTES)

    def read_all_the_time(slot: int) -> None:
        while not stop.is_set():
            for number in range(200):
                call = Call()
                address = drivers.slots.at(slot)
                if drivers.store.read(key_of(number), address, drivers.length, call):
                    content = payload_of(number, drivers.length)
                    if call.wait() and drivers.slots.get(slot, drivers.length) != content:
                        wrong.append(f"block {number}")

    readers = [threading.Thread(target=read_all_the_time, args=(slot,)) for slot in (2, 3)]
    for reader in readers:
        reader.start()
    for turn in range(3):
        for number in range(200):
            drivers.put(number)
            if number % 97 == 0:
                drivers.store.forget([key_of(number - turn)])
    stop.set()
    for reader in readers:
        reader.join(30)
    stats = drivers.store.stats()
    drivers.close()
    assert wrong == []
    assert stats.num_evicted > 100
    assert set(stats.misses) <= {"evicted"}
    for directory in drivers.store._directories:
        directory.desk.log.check()


def test_looking_keys_up_costs_little_beside_a_dictionary(tmp_path, record_property) -> None:
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES)
    driver.put(1)
    keys = [key_of(number) for number in range(10_000)]
    begun_s = time.perf_counter()
    driver.store.contains(keys)
    record_property("us a key", round((time.perf_counter() - begun_s) / len(keys) * 1e6, 3))
    driver.close()
