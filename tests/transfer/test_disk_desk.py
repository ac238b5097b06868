"""The desk between callers and threads: bounds, batches, ends."""

import pytest

from nodeserve.kv.disk_bound import LogShape
from nodeserve.kv.disk_log import DiskLog, Prepare, Remove
from nodeserve.transfer.disk_desk import Desk, Transfer
from nodeserve.transfer.disk_options import DiskOptions
from tests.support.disk import Call, key_of

SEGMENT_BYTES = 64 << 10
LENGTH = 8192
OPTIONS = DiskOptions(
    batch_records=3, batch_bytes=3 * LENGTH, max_queued_reads=2, max_queued_writes=4
)


class Told:
    def __init__(self):
        self.reasons = []

    def __call__(self, reason):
        self.reasons.append(reason)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def desk(told):
    made = Desk("d", DiskLog(LogShape(1 << 20, SEGMENT_BYTES, 4)), OPTIONS, told)
    do_jobs(made)
    yield made
    made.log.check()


def do_jobs(desk):
    while (job := desk.take_job(0)) is not None:
        match job:
            case Prepare(number, _reuses):
                desk.tell_log(lambda log, number=number: log.prepared(number))
            case Remove(number):
                desk.tell_log(lambda log, number=number: log.removed(number))
            case _:
                raise AssertionError(job)


def transfer(number, length=LENGTH):
    return Transfer(key_of(number), 0, length, Call())


def store(desk, number):
    write = transfer(number)
    assert desk.write(write) == ""
    desk.end_writes(desk.take_writes(), 0.5)
    assert write.done.wait()
    do_jobs(desk)


def test_writes_beyond_the_bound_are_refused_and_taken_again_when_there_is_room(desk) -> None:
    writes = [transfer(number) for number in range(5)]
    assert [desk.write(write) for write in writes] == ["", "", "", "", "writes_full"]
    assert (desk.num_queued, desk.pending_bytes) == ((0, 4), 4 * LENGTH)
    batch = desk.take_writes()
    assert desk.write(writes[4]) == "writes_full"  # what is under way counts too
    desk.end_writes(batch, 0.5)
    assert [write.done.outcomes for write in writes] == [[True]] * 3 + [[], []]
    assert desk.write(writes[4]) == ""
    assert desk.pending_bytes == 2 * LENGTH


def test_reads_beyond_the_bound_are_refused_and_taken_again_when_there_is_room(desk) -> None:
    store(desk, 1)
    reads = [transfer(1) for _ in range(3)]
    assert [desk.read(read) for read in reads] == ["", "", "reads_full"]
    batch = desk.take_reads()
    assert desk.read(reads[2]) == "reads_full"
    desk.end_reads(batch, [""], 0.5)
    assert reads[0].done.outcomes == [True]
    assert desk.read(reads[2]) == ""


def test_what_is_stored_or_being_stored_or_too_large_is_not_taken_in(desk) -> None:
    store(desk, 1)
    assert desk.write(transfer(1)) == "known"
    assert desk.write(transfer(2)) == ""
    assert desk.write(transfer(2)) == "known"
    assert desk.read(transfer(2)) == "unknown"
    assert desk.write(transfer(3, SEGMENT_BYTES)) == "too_large"
    assert desk.write(transfer(3, SEGMENT_BYTES - 4096)) == ""


def test_a_batch_lies_in_one_piece_of_one_segment(desk) -> None:
    for number, length in enumerate([LENGTH, 3 * LENGTH, 2 * LENGTH, LENGTH]):
        desk.write(transfer(number, length))
    places = []
    for _ in range(4):
        batch = desk.take_writes()
        do_jobs(desk)
        places.append([reservation.place[:2] for _write, reservation in batch])
        desk.end_writes(batch, 0.5)
    # Each would be more than a batch with the one before, and the last is more than the segment.
    assert places == [[(1, 0)], [(1, 12288)], [(1, 40960)], [(2, 0)]]


def test_reads_behind_one_another_are_one_and_every_reader_gets_a_share(told) -> None:
    options = DiskOptions(num_readers=2, read_batch_bytes=3 * (4096 + LENGTH))
    desk = Desk("d", DiskLog(LogShape(1 << 20, SEGMENT_BYTES, 4)), options, told)
    do_jobs(desk)
    for number in range(9):
        store(desk, number)  # five to a segment
    for numbers, batches in [
        ([0], [[0]]),
        ([0, 1], [[0], [1]]),
        ([0, 1, 2, 3], [[0, 1], [2], [3]]),
        ([0, 2, 4, 6, 8], [[0], [2], [4], [6], [8]]),
        ([3, 4, 5, 6, 7, 8], [[3, 4], [5, 6], [7], [8]]),
        ([0, 1, 2, 3, 4, 5, 6, 7], [[0, 1, 2], [3, 4], [5], [6], [7]]),
    ]:
        reads = [transfer(number) for number in numbers]
        assert all(desk.read(read) == "" for read in reads)
        taken = []
        for _ in batches:
            batch = desk.take_reads()
            taken.append([read.key for read, _place in batch])
            desk.end_reads(batch, [""] * len(batch), 0.5)
        assert taken == [[key_of(number) for number in batch] for batch in batches]
        assert all(read.done.outcomes == [True] for read in reads)
    desk.log.check()


def test_a_read_of_a_block_that_went_meanwhile_is_a_miss(desk) -> None:
    store(desk, 1)
    store(desk, 2)
    gone, there = transfer(1), transfer(2)
    assert (desk.read(gone), desk.read(there)) == ("", "")
    desk.forget([key_of(1)])
    assert desk.take_reads()[0][0] is there
    assert (gone.done.outcomes, desk.misses) == ([False], {"evicted": 1})


def test_a_faulty_record_is_a_miss_of_its_kind_and_known_no_more(desk) -> None:
    store(desk, 1)
    read = transfer(1)
    desk.read(read)
    desk.end_reads(desk.take_reads(), ["payload"], 0.5)
    assert (read.done.outcomes, desk.misses) == ([False], {"payload": 1})
    assert not desk.knows(key_of(1))


def test_a_failed_directory_ends_everything_that_waits_and_says_so_once(desk, told) -> None:
    store(desk, 1)
    under_way, queued, read = transfer(2), transfer(3), transfer(1)
    desk.write(under_way)
    batch = desk.take_writes()
    desk.write(queued)
    desk.read(read)
    desk.fail("no space left")
    desk.fail("another thread's words")
    assert (told.reasons, desk.off_reason) == (["no space left"], "no space left")
    assert (queued.done.outcomes, read.done.outcomes) == ([False], [False])
    desk.lose_writes(batch)
    assert under_way.done.outcomes == [False]
    assert (desk.take_reads(), desk.take_writes(), desk.is_upkept) == (None, None, False)
    assert (desk.read(transfer(1)), desk.write(transfer(9))) == ("off", "off")
    assert (desk.num_queued, desk.pending_bytes, len(desk.log.index)) == ((0, 0), 0, 0)


def test_a_write_that_ends_well_after_the_failure_is_not_found_either(desk) -> None:
    write = transfer(1)
    desk.write(write)
    batch = desk.take_writes()
    desk.fail("read-only file system")
    desk.end_writes(batch, 0.5)
    assert (write.done.outcomes, desk.knows(key_of(1))) == ([True], False)


def test_a_closing_desk_gives_out_what_waits_and_takes_nothing_in(desk) -> None:
    write = transfer(1)
    desk.write(write)
    desk.close()
    assert desk.write(transfer(2)) == "off"
    desk.end_writes(desk.take_writes(), 0.5)
    assert (desk.take_writes(), desk.take_reads(), write.done.outcomes) == (None, None, [True])
    assert desk.is_upkept
    desk.end_upkeep()
    assert not desk.is_upkept


def test_abandoned_transfers_are_told_so(desk) -> None:
    store(desk, 1)
    write, read = transfer(2), transfer(1)
    desk.write(write)
    desk.read(read)
    desk.abandon()
    assert (write.done.outcomes, read.done.outcomes) == ([False], [False])
    assert (desk.take_writes(), desk.take_reads()) == (None, None)


def test_clear_drops_what_waits_and_what_is_under_way(desk) -> None:
    store(desk, 1)
    under_way, queued = transfer(2), transfer(3)
    desk.write(under_way)
    batch = desk.take_writes()
    desk.write(queued)
    desk.clear()
    assert queued.done.outcomes == [False]
    desk.end_writes(batch, 0.5)
    assert under_way.done.outcomes == [False]
    assert not any(desk.knows(key_of(number)) for number in (1, 2, 3))
    do_jobs(desk)
    store(desk, 2)


def test_a_caller_s_own_error_stops_nothing(desk, caplog) -> None:
    def fail(_ok):
        raise RuntimeError("the caller's bug")

    desk.write(Transfer(key_of(1), 0, LENGTH, fail))
    after = transfer(2)
    desk.write(after)
    desk.end_writes(desk.take_writes(), 0.5)
    assert after.done.outcomes == [True]
    assert "disk_done_failed" in caplog.text
