import logging
import socket

import pytest

from nodeserve.telemetry.journal import JournalHandler, encode


@pytest.fixture
def journal(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "journal"))
        listening.setblocking(False)
        yield listening


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


def record(text, level=logging.WARNING):
    return logging.LogRecord("nodeserve", level, __file__, 1, text, (), None)


def test_a_line_becomes_an_entry_with_its_fields(tmp_path, journal):
    handler = JournalHandler(tmp_path / "journal", Kept())
    handler.handle(record("worker_starting name=d0 phase='loading weights' late_s=3.2"))
    assert journal.recv(65536).decode().splitlines() == [
        "MESSAGE=worker_starting name=d0 phase='loading weights' late_s=3.2",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=nodeserve",
        "NODESERVE_EVENT=worker_starting",
        "NODESERVE_NAME=d0",
        "NODESERVE_PHASE=loading weights",
        "NODESERVE_LATE_S=3.2",
    ]


def test_lines_below_the_first_are_part_of_the_message_and_no_fields():
    entry = encode("process_exited name=d0 pid=7: killed\n    | last=words", 4)
    text = b"process_exited name=d0 pid=7: killed\n    | last=words"
    assert entry.startswith(b"MESSAGE\n" + len(text).to_bytes(8, "little") + text + b"\n")
    assert b"NODESERVE_PID=7\n" in entry
    assert b"NODESERVE_LAST" not in entry


def test_what_is_no_event_has_no_fields():
    assert b"NODESERVE" not in encode("Address already in use: port=8000", 3)


def test_a_value_cannot_begin_another_field():
    entry = encode("config_warning name=x\nPRIORITY=0\n", 4)
    assert entry.count(b"\nPRIORITY=") == 2  # one inside of the message, behind its length
    assert entry.index(b"MESSAGE\n") == 0
    assert encode("\ud800", 4)  # what cannot be encoded is shown, not raised


def test_a_record_that_the_journal_does_not_take_is_not_lost(tmp_path, journal):
    kept = Kept()
    JournalHandler(tmp_path / "nobody", kept).handle(record("worker_lost name=d0"))
    JournalHandler(tmp_path / "journal", kept).handle(record("x" * 10_000_000))
    assert [len(r.getMessage()) for r in kept.records] == [19, 10_000_000]
