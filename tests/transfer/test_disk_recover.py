"""Opening a directory again: whatever happened to it, a block is whole or a miss."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nodeserve.transfer.disk_recover import CHECKPOINT, segment_name
from tests.support.disk import SEGMENT_BYTES, StoreDriver, used_bytes

MAX_BYTES = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
NUMBERS = range(8)
RECORD_BYTES = 12288


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A directory with eight blocks in two segments, closed in order."""
    path = tmp_path_factory.mktemp("closed")
    driver = StoreDriver(path, max_bytes=MAX_BYTES)
    assert all(driver.put(number) for number in NUMBERS)
    driver.close()
    return path


@pytest.fixture
def copy(closed, tmp_path):
    """A copy of it to spoil."""
    path = tmp_path / "copy"
    shutil.copytree(closed, path)
    return path


def reopened(path, **settings):
    """Open, read everything, close; return what was there and what was said of it."""
    driver = StoreDriver(path, max_bytes=MAX_BYTES, **settings)
    named = driver.has(*NUMBERS)
    there = [number for number in NUMBERS if driver.get(number)]
    stats = driver.store.stats()
    driver.close()
    assert set(there) <= set(named)
    return there, stats


def test_everything_is_there_again_by_the_checkpoint_alone(copy) -> None:
    there, stats = reopened(copy)
    assert there == list(NUMBERS)
    assert stats.recovered == {"known_records": 8, "records": 8}


def test_everything_is_there_again_by_headers_alone(copy) -> None:
    (copy / CHECKPOINT).unlink()
    there, stats = reopened(copy)
    assert there == list(NUMBERS)
    assert stats.recovered == {"records": 8}


@pytest.mark.parametrize("spoiled", [b"", b"\0" * 5000, b"NSKVIDX1 and then something else"])
def test_a_checkpoint_that_is_none_is_counted_and_headers_are_read(copy, spoiled) -> None:
    (copy / CHECKPOINT).write_bytes(spoiled)
    (copy / f"{CHECKPOINT}.new").write_bytes(b"never put in its place")
    there, stats = reopened(copy)
    assert there == list(NUMBERS)
    assert stats.recovered == {"records": 8, "bad_checkpoints": 1}
    assert {path.name for path in copy.iterdir()} - {"lock", CHECKPOINT} == {
        segment_name(number) for number in (1, 2, 4)
    }


def test_what_a_checkpoint_does_not_know_yet_is_found_behind_it(copy) -> None:
    old = (copy / CHECKPOINT).read_bytes()
    driver = StoreDriver(copy, max_bytes=MAX_BYTES)
    assert all(driver.put(number) for number in range(8, 30))
    driver.close()
    (copy / CHECKPOINT).write_bytes(old)
    driver = StoreDriver(copy, max_bytes=MAX_BYTES)
    assert driver.store.stats().recovered == {"known_records": 8, "records": 30}
    assert all(driver.get(number) for number in range(30))
    driver.close()


def test_a_checkpoint_of_files_that_were_used_again_since_answers_nothing(copy) -> None:
    old = (copy / CHECKPOINT).read_bytes()
    driver = StoreDriver(copy, max_bytes=MAX_BYTES)
    assert all(driver.put(number) for number in range(100, 300))
    kept = driver.has(*range(100, 300))
    driver.close()
    (copy / CHECKPOINT).write_bytes(old)
    driver = StoreDriver(copy, max_bytes=MAX_BYTES)
    assert driver.has(*NUMBERS) == []
    assert driver.has(*range(100, 300)) == kept
    assert all(driver.get(number) for number in kept)
    driver.close()


def test_blocks_written_after_a_restart_do_not_disturb_those_before(copy) -> None:
    for restart in range(5):
        driver = StoreDriver(copy, max_bytes=MAX_BYTES)
        assert driver.put(1000 + restart)
        assert all(driver.get(number) for number in (*NUMBERS, *range(1000, 1001 + restart)))
        driver.close()


@pytest.mark.parametrize("with_checkpoint", [True, False])
@pytest.mark.parametrize("page", range(SEGMENT_BYTES // 4096 + 1))
@pytest.mark.parametrize("beyond", [0, 1, 100])
def test_a_segment_cut_short_anywhere_has_what_lies_before(
    copy, page, beyond, with_checkpoint
) -> None:
    num_bytes = min(page * 4096 + beyond, SEGMENT_BYTES)
    with (copy / segment_name(1)).open("r+b") as file:
        file.truncate(num_bytes)
    if not with_checkpoint:
        (copy / CHECKPOINT).unlink()
    there, stats = reopened(copy)
    assert there == [n for n in NUMBERS if n >= 5 or (n + 1) * RECORD_BYTES <= num_bytes]
    assert stats.recovered.get("short_segments", 0) == int(num_bytes < SEGMENT_BYTES)


@pytest.mark.parametrize("with_checkpoint", [True, False])
@pytest.mark.parametrize("page", range(SEGMENT_BYTES // 4096))
@pytest.mark.parametrize("beyond", [0, 50, 104, 900])
def test_a_byte_flipped_anywhere_is_a_miss_or_does_not_matter(
    copy, page, beyond, with_checkpoint
) -> None:
    path = copy / segment_name(1)
    content = bytearray(path.read_bytes())
    content[page * 4096 + beyond] ^= 0x40
    path.write_bytes(content)
    if not with_checkpoint:
        (copy / CHECKPOINT).unlink()
    there, stats = reopened(copy)
    record, page_of_record = divmod(page, 3)
    if page_of_record == 0 and beyond < 108 and record < 5:
        # Without a checkpoint nothing behind a header that is not one is believed.
        lost = {record} if with_checkpoint else set(range(record, 5))
    elif page_of_record == 1 or (page_of_record == 2 and beyond < 5000 - 4096):
        lost = {record} & set(range(5))
    else:
        lost = set()
    assert there == [number for number in NUMBERS if number not in lost]
    counted = sum(stats.misses.values()) + stats.recovered.get("torn_records", 0)
    assert counted == int(bool(lost))


def test_another_namespace_s_blocks_are_ignored_and_found_again_by_their_own(copy) -> None:
    there, stats = reopened(copy, namespace=b"X" * 32)
    assert there == []
    assert stats.recovered == {"foreign_segments": 2, "foreign_checkpoints": 1}
    there, stats = reopened(copy)
    assert there == list(NUMBERS)


def test_another_namespace_s_segments_are_used_before_ours(copy) -> None:
    driver = StoreDriver(copy, max_bytes=MAX_BYTES, namespace=b"X" * 32)
    max_segments = driver.store._directories[0].desk.log.shape.max_segments
    number = 0
    while driver.store.stats().num_evicted == 0:
        assert driver.put(number)
        number += 1
        kept = len(driver.has(*range(number)))
    assert kept >= (max_segments - 3) * 5
    driver.close()
    assert reopened(copy)[0] == []


def test_a_smaller_bound_keeps_the_newest_blocks_and_the_bound(tmp_path) -> None:
    driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES)
    assert all(driver.put(number) for number in range(50))
    driver.close()
    smaller = 600_000
    driver = StoreDriver(tmp_path, max_bytes=smaller)
    kept = driver.has(*range(50))
    assert kept == list(range(50 - len(kept), 50))
    assert len(kept) >= 20
    assert used_bytes(tmp_path) <= smaller
    assert all(driver.get(number) for number in kept)
    assert all(driver.put(number) for number in range(50, 90))
    assert used_bytes(tmp_path) <= smaller
    driver.close()


def test_segments_larger_than_ours_are_removed(copy) -> None:
    (copy / segment_name(9)).write_bytes(bytes(SEGMENT_BYTES + 4096))
    there, stats = reopened(copy)
    assert (there, stats.recovered["removed_segments"]) == (list(NUMBERS), 1)
    assert not (copy / segment_name(9)).exists()
    assert stats.directories[0].num_records == 8


def test_files_that_are_not_the_tier_s_are_left_alone(copy) -> None:
    (copy / "notes.txt").write_text("an operator's")
    assert reopened(copy)[0] == list(NUMBERS)
    assert (copy / "notes.txt").read_text() == "an operator's"


_WRITER = """
import os, sys
from nodeserve.transfer.disk_options import DiskOptions
from tests.support.disk import *
path, first = sys.argv[1], int(sys.argv[2])
options = DiskOptions(segment_bytes=SEGMENT_BYTES, num_writers=3, checkpoint_interval_s=0.0,
                      check_interval_s=0.001)
driver = StoreDriver(path, max_bytes=1 << 20, options=options)
slots = Slots(6, 20480)
free = list(range(6))
turn = threading.Condition()
def length_of(number):
    return 1000 + number * 7919 % 19000
def finish(slot, number):
    def done(ok):
        with turn:
            free.append(slot)
            turn.notify()
        os.write(1, b"%d\\n" % number)  # a line whole, whoever else writes one
    return done
for number in range(first, first + 100_000):
    with turn:
        turn.wait_for(lambda: free)
        slot = free.pop()
    address = slots.put(slot, payload_of(number, length_of(number)))
    if not driver.store.write(key_of(number), address, length_of(number), finish(slot, number)):
        free.append(slot)
"""


def killed_while_writing(path, first, num_lines):
    """Run a process that writes blocks from ``first`` on and kill it in the middle of it."""
    command = [sys.executable, "-c", _WRITER, str(path), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        lines = [process.stdout.readline() for _ in range(num_lines)]
        process.kill()
        lines += process.stdout.readlines()
    return {int(line) for line in lines if line.endswith("\n")}


def length_of(number):
    return 1000 + number * 7919 % 19000


def test_a_writer_killed_at_any_point_leaves_blocks_that_are_whole_or_missed(
    tmp_path, record_property
) -> None:
    chance = random.Random(4)
    told = found = 0
    for kill in range(24):
        first = kill * 100_000
        stored = killed_while_writing(tmp_path, first, chance.randrange(1, 150))
        assert stored
        assert used_bytes(tmp_path) <= MAX_BYTES
        if kill % 4 == 3:
            (tmp_path / CHECKPOINT).unlink(missing_ok=True)
        driver = StoreDriver(tmp_path, max_bytes=MAX_BYTES, length=20480)
        assert driver.store.state == "open"
        for number in range(first, first + 2000):
            driver.length = length_of(number)
            found += driver.get(number)
        told += min(len(stored), 30)
        assert driver.store.stats().num_found > 0 or len(stored) < 30
        driver.close()
    record_property("blocks found after 24 kills", found)
    assert found >= told // 2
