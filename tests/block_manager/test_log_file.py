"""The log's file: bounded, and nobody waits for it."""

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from nodeserve.block_manager import log_file
from nodeserve.block_manager.log_file import LogFile
from nodeserve.clock import ManualClock
from nodeserve.kv.tier_log import LogHeader, Op
from tests.kv.tiers import keys

HEADER = "nodeserve-kv-log 1 10 4096\n"
TIER = LogHeader(10, 4096)


class Stuck:
    """A writer whose disk does not answer."""

    def submit(self, *args):
        return Future()


@pytest.fixture
def writer():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_lines_are_written_with_times_since_the_tier_began(tmp_path, writer) -> None:
    clock = ManualClock(50.0)
    log = LogFile(tmp_path / "log", clock, writer)
    log.begin(TIER)
    clock.advance(1.5)
    log.add(Op.LOOK_UP, "l", keys("a"))
    log.close(5.0)
    first, line = (tmp_path / "log").read_text().splitlines(keepends=True)
    assert first == HEADER
    assert line.startswith("1500 L l - ")
    assert (log.num_written, log.num_dropped) == (2, 0)


def test_a_log_goes_on_where_a_predecessor_ended(tmp_path, writer) -> None:
    for _ in range(2):
        log = LogFile(tmp_path / "log", ManualClock(), writer)
        log.begin(TIER)
        log.close(5.0)
    assert (tmp_path / "log").read_text() == HEADER * 2


def test_a_full_file_makes_place_for_a_new_one_which_begins_with_its_header(
    tmp_path, writer, monkeypatch
) -> None:
    monkeypatch.setattr(log_file, "MAX_FILE_BYTES", 10)
    log = LogFile(tmp_path / "log", ManualClock(), writer)
    log.begin(TIER)
    log.flush()
    log._writing.result(5.0)
    log.add(Op.LOOK_UP, "l", b"")
    log.close(5.0)
    assert (tmp_path / "log.1").read_text() == HEADER
    assert (tmp_path / "log").read_text() == HEADER + "0 L l - -\n"


def test_lines_beyond_the_bound_are_dropped_and_counted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(log_file, "MAX_WAITING_BYTES", 60)
    log = LogFile(tmp_path / "log", ManualClock(), Stuck())
    log.begin(TIER)
    for _ in range(5):
        log.add(Op.LOOK_UP, "l", b"")
    assert log.num_dropped == 2
    log.flush()
    log.add(Op.LOOK_UP, "l", b"")
    log.flush()
    assert len(log._lines) == 1
    log.close(0.0)


def test_a_disk_that_fails_costs_lines_and_says_so_once(tmp_path, writer, caplog) -> None:
    log = LogFile(tmp_path / "missing" / "log", ManualClock(), writer)
    log.begin(TIER)
    log.close(5.0)
    log.add(Op.LOOK_UP, "l", b"")
    log.close(5.0)
    assert (log.num_written, log.num_dropped) == (0, 2)
    assert len([r for r in caplog.records if "kv_log_failed" in r.message]) == 1
