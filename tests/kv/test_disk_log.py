"""The log of one directory: what is asked of the files, and what is where."""

import random

import pytest

from nodeserve.errors import InvariantError
from nodeserve.kv.disk_bound import LogShape
from nodeserve.kv.disk_log import DiskLog, Evict, Prepare, Remove, Reservation
from nodeserve.kv.disk_segment import Phase, Place, Segment

PAGE = 4096
SHAPE = LogShape(max_bytes=1 << 20, segment_bytes=8 * PAGE, max_segments=4)
LENGTH = PAGE  # a record of two pages, four to a segment
FIT = 4


def key_of(number):
    return b"%032d" % number


@pytest.fixture
def log():
    made = DiskLog(SHAPE)
    yield made
    made.check()


def do_jobs(log):
    """Do every job at once, moving nothing; return those that were done."""
    jobs = []
    while (job := log.next_job()) is not None:
        jobs.append(job)
        finish(log, job)
    return jobs


def finish(log, job):
    match job:
        case Prepare(number, _reuses):
            log.prepared(number)
        case Evict(number, _hot):
            log.evicted(number)
        case Remove(number):
            log.removed(number)
        case _:
            raise AssertionError(job)


def store(log, *numbers):
    places = []
    for number in numbers:
        reserved = log.reserve(LENGTH)
        assert log.commit(key_of(number), reserved.place)
        places.append(reserved.place)
        do_jobs(log)
    return places


def read(log, number):
    log.end_read(log.begin_read(key_of(number)))


def test_records_are_appended_and_each_segment_is_prepared_ahead(log) -> None:
    assert log.reserve(LENGTH) is None
    assert do_jobs(log) == [Prepare(1, None)]
    assert log.reserve(LENGTH) == Reservation(Place(1, 0, 2 * PAGE), 1)
    assert do_jobs(log) == [Prepare(2, None)]
    assert [log.reserve(LENGTH) for _ in range(4)] == [
        Reservation(Place(1, 2 * PAGE, 2 * PAGE), 2),
        Reservation(Place(1, 4 * PAGE, 2 * PAGE), 3),
        Reservation(Place(1, 6 * PAGE, 2 * PAGE), 4),
        Reservation(Place(2, 0, 2 * PAGE), 5),
    ]


def test_a_block_is_there_from_its_commit_on(log) -> None:
    do_jobs(log)
    place = log.reserve(LENGTH).place
    assert key_of(1) not in log.index
    assert log.begin_read(key_of(1)) is None
    log.commit(key_of(1), place)
    assert key_of(1) in log.index
    assert log.begin_read(key_of(1)) == place


def test_a_record_larger_than_a_segment_is_the_callers_bug(log) -> None:
    do_jobs(log)
    with pytest.raises(InvariantError, match="36864 bytes for segments of 32768"):
        log.reserve(8 * PAGE)


def test_the_oldest_segment_is_evicted_and_its_file_used_again(log) -> None:
    do_jobs(log)
    store(log, *range(3 * FIT))
    assert log.num_files == 4
    reserved = log.reserve(LENGTH)
    assert do_jobs(log) == [Evict(1, ()), Prepare(5, 1)]
    log.commit(key_of(99), reserved.place)
    assert [number for number in range(3 * FIT) if key_of(number) in log.index] == list(
        range(FIT, 3 * FIT)
    )
    assert (log.num_evicted, log.num_files) == (FIT, 4)


def test_what_was_read_is_to_be_moved_most_read_first_within_the_budget() -> None:
    log = DiskLog(SHAPE, reinsert_fraction=0.5)
    do_jobs(log)
    places = store(log, *range(3 * FIT))
    for number in (0, 1, 3, 3, 3, 1):
        read(log, number)
    reserved = log.reserve(LENGTH)
    job = log.next_job()
    assert job == Evict(1, ((key_of(3), places[3]), (key_of(1), places[1])))
    # What is not worth it is gone at once; what is can be read where it was.
    assert [number for number in range(FIT) if key_of(number) in log.index] == [1, 3]
    log.commit(key_of(99), reserved.place)
    moved = log.reserve(LENGTH).place
    assert log.commit_moved(key_of(3), places[3], moved)
    log.evicted(1)
    assert log.begin_read(key_of(3)) == moved
    assert key_of(1) not in log.index
    log.check()


def test_a_block_forgotten_while_it_is_moved_stays_forgotten(log) -> None:
    do_jobs(log)
    (place, *_others) = store(log, *range(3 * FIT))
    read(log, 0)
    log.reserve(LENGTH)
    assert log.next_job() == Evict(1, ((key_of(0), place),))
    moved = log.reserve(LENGTH).place
    log.forget([key_of(0)])
    assert not log.commit_moved(key_of(0), place, moved)
    log.evicted(1)
    assert key_of(0) not in log.index


def test_a_segment_being_read_is_not_used_again_until_the_reader_is_through(log) -> None:
    do_jobs(log)
    store(log, *range(3 * FIT))
    place = log.begin_read(key_of(0))
    reserved = log.reserve(LENGTH)
    job = log.next_job()
    log.evicted(job.number)
    assert (log.next_job(), log.is_settled) == (None, False)
    log.commit(key_of(99), reserved.place)
    log.end_read(place)
    assert do_jobs(log) == [Prepare(5, 1)]
    assert log.is_settled


def test_a_segment_being_written_is_not_evicted(log) -> None:
    do_jobs(log)
    slow = log.reserve(LENGTH).place
    do_jobs(log)
    store(log, *range(3 * FIT - 1))
    log.reserve(LENGTH)
    assert log.next_job() == Evict(2, ())
    log.evicted(2)
    log.commit(key_of(98), slow)
    assert key_of(98) in log.index


def test_nothing_is_left_after_clear_and_every_used_file_is_removed(log) -> None:
    do_jobs(log)
    store(log, *range(FIT + 1))
    late = log.reserve(LENGTH).place
    log.clear()
    assert not log.index
    assert log.next_job() == Remove(1)
    log.removed(1)
    assert log.next_job() is None
    assert not log.commit(key_of(50), late)
    assert do_jobs(log) == [Remove(2)]
    assert log.num_files == 1
    store(log, 7)
    assert list(log.index) == [key_of(7)]


def test_clear_removes_files_that_wait_to_be_used_again(log) -> None:
    log.adopt(Segment(3, Phase.SEALED))
    log.adopt_foreign(4)
    log.clear()
    assert do_jobs(log) == [Remove(3), Remove(4), Prepare(5, None)]


def test_a_record_that_is_not_whole_is_dropped_only_where_it_was_found_so(log) -> None:
    do_jobs(log)
    (old,) = store(log, 1)
    (new,) = store(log, 1)
    log.drop(key_of(1), old)
    assert log.begin_read(key_of(1)) == new
    log.drop(key_of(1), new)
    assert key_of(1) not in log.index


def adopted(number, *keys):
    segment = Segment(number, Phase.SEALED)
    for key in keys:
        segment.add(key, Place(number, segment.head, 2 * PAGE))
        segment.head += 2 * PAGE
    return segment


def test_adopted_segments_are_kept_and_never_appended_to(log) -> None:
    log.adopt(adopted(3, key_of(1), key_of(2)))
    log.adopt(adopted(7, key_of(2)))
    assert log.begin_read(key_of(2)) == Place(7, 0, 2 * PAGE)
    assert do_jobs(log) == [Prepare(8, None)]
    assert log.reserve(LENGTH) == Reservation(Place(8, 0, 2 * PAGE), 1)


def test_empty_files_are_used_first_then_new_ones_then_foreign_then_evicted_ones(log) -> None:
    log.adopt_foreign(2)
    log.adopt(adopted(3))
    log.adopt(adopted(4, key_of(1)))
    assert do_jobs(log) == [Prepare(5, 3)]
    store_and_jobs = []
    for number in range(100, 100 + 3 * FIT):
        log.commit(key_of(number), log.reserve(LENGTH).place)
        store_and_jobs += do_jobs(log)
    assert store_and_jobs == [Prepare(6, None), Prepare(7, 2), Evict(4, ()), Prepare(8, 4)]


def test_what_is_too_much_for_the_bound_is_given_up_worst_first(log) -> None:
    log.adopt(adopted(1, key_of(1)))
    log.adopt(adopted(2, key_of(2)))
    log.adopt_foreign(3)
    log.adopt(adopted(4))
    log.adopt(adopted(5, key_of(5)))
    log.adopt(adopted(6, key_of(6)))
    log.adopt(adopted(7, key_of(7)))
    assert log.surplus() == [4, 3, 1]
    assert [n for n in range(9) if key_of(n) in log.index] == [2, 5, 6, 7]


def test_a_checkpoint_names_what_a_successor_needs(log) -> None:
    log.start_numbers_at(10, 100)
    do_jobs(log)
    store(log, 1)
    log.reserve(LENGTH)
    checkpoint = log.checkpoint(b"n" * 32)
    assert (checkpoint.next_segment, checkpoint.next_sequence) == (12, 102)
    assert [(s.number, s.known_bytes) for s in checkpoint.segments] == [(10, 2 * PAGE)]


@pytest.mark.parametrize("seed", range(20))
def test_a_long_random_life_keeps_the_bound_and_every_place_true(seed) -> None:
    """A model of the files: what was last committed at a place is what the log says is there."""
    chance = random.Random(seed)
    log = DiskLog(SHAPE)
    files: dict[int, dict[int, bytes]] = {}
    reading: list[tuple[bytes, Place]] = []
    writing: list[tuple[bytes, Place]] = []
    for step in range(2000):
        match chance.choice(("write", "commit", "read", "end", "job", "job", "clear", "forget")):
            case "write":
                reserved = log.reserve(chance.choice((1, LENGTH, 3 * PAGE)))
                if reserved is not None:
                    writing.append((key_of(chance.randrange(30)), reserved.place))
            case "commit" if writing:
                key, place = writing.pop(chance.randrange(len(writing)))
                files[place.segment][place.offset] = key
                log.commit(key, place)
            case "read" if log.index:
                key = chance.choice(list(log.index))
                reading.append((key, log.begin_read(key)))
            case "end" if reading:
                key, place = reading.pop(chance.randrange(len(reading)))
                assert files[place.segment][place.offset] == key
                log.end_read(place)
            case "forget":
                log.forget([key_of(chance.randrange(30))])
            case "clear" if chance.random() < 0.02:
                log.clear()
            case "job":
                do_one(log, files)
            case _:
                pass
        assert len(files) <= SHAPE.max_segments
        log.check()
        if step % 50 == 0:
            for key, packed in log.index.items():
                place = Place.unpack(packed)
                assert files[place.segment][place.offset] == key


def do_one(log, files):
    job = log.next_job()
    match job:
        case Prepare(number, reuses):
            if reuses is not None:
                del files[reuses]
            files[number] = {}
        case Evict(_number, hot):
            for key, place in hot:
                reserved = log.reserve(LENGTH) if log.has_room(LENGTH) else None
                if reserved is not None and place.num_bytes == reserved.place.num_bytes:
                    files[reserved.place.segment][reserved.place.offset] = key
                    log.commit_moved(key, place, reserved.place)
                elif reserved is not None:
                    log.abandon(reserved.place)
        case Remove(number):
            del files[number]
        case _:
            return
    finish(log, job)
