import logging
import os
import socket
import sys

import pytest

from nodeserve.errors import ConfigError
from nodeserve.telemetry.logging import setup


@pytest.fixture(autouse=True)
def untouched_logger():
    logger = logging.getLogger("nodeserve")
    before = (logger.handlers[:], logger.propagate, logger.level)
    yield
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def test_event_goes_to_stderr_on_one_line_behind_time_and_level(capsys):
    setup("info")
    logging.getLogger("nodeserve.worker").info("worker_lost worker=%s late_s=%.1f", "d0", 3.2)
    line = capsys.readouterr().err
    assert line.endswith("Z INFO worker_lost worker=d0 late_s=3.2\n")
    assert line.count("\n") == 1


class Stream:
    """A stderr of which the journal may know the device and inode."""

    def __init__(self, path):
        self._file = path.open("w")
        self.fileno, self.write, self.flush = self._file.fileno, self._file.write, self._file.flush

    @property
    def name_for_journal(self):
        found = os.fstat(self.fileno())
        return f"{found.st_dev}:{found.st_ino}"


@pytest.mark.parametrize("matches", [True, False])
def test_only_the_journal_is_spared_the_time(tmp_path, monkeypatch, matches):
    stream = Stream(tmp_path / "log")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("JOURNAL_STREAM", stream.name_for_journal if matches else "1:2")
    setup(journal=tmp_path / "nobody")
    logging.getLogger("nodeserve").warning("process_exited name=d0: killed\n    | last words")
    stream.flush()
    first, second = (tmp_path / "log").read_text().splitlines()
    if matches:
        assert (first, second) == ("<4>process_exited name=d0: killed", "<4>    | last words")
    else:
        assert first.endswith("Z WARNING process_exited name=d0: killed")


def test_the_journal_gets_records_through_its_socket_and_nothing_on_stderr(tmp_path, monkeypatch):
    stream = Stream(tmp_path / "log")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("JOURNAL_STREAM", stream.name_for_journal)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        journal.setblocking(False)
        setup(journal=tmp_path / "journal")
        logging.getLogger("nodeserve").warning("worker_lost name=%s", "d0")
        assert b"NODESERVE_NAME=d0\n" in journal.recv(65536)
    stream.flush()
    assert (tmp_path / "log").read_text() == ""


def test_lines_below_the_level_are_dropped(capsys):
    setup("WARNING")
    logging.getLogger("nodeserve.worker").info("worker_ready worker=%s", "d0")
    assert capsys.readouterr().err == ""


def test_second_setup_does_not_double_lines(capsys):
    setup()
    setup()
    logging.getLogger("nodeserve").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_unknown_level_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match="'loud' is unknown; choose one of DEBUG"):
        setup("loud")
