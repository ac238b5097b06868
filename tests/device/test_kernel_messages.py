import json
import os
import select
import socket
import stat
import sys

import pytest

from nodeserve.device.base import XidSeen
from nodeserve.device.kernel_log import KERNEL
from nodeserve.device.kernel_messages import (
    Journal,
    Kmsg,
    journal_command,
    open_kernel_log,
    parse_journal_line,
    parse_record,
)

XID = "NVRM: Xid (PCI:0000:19:00): {}, pid=1, GPU has fallen off the bus."


def seen(number, at_s):
    text = "pid=1, GPU has fallen off the bus."
    return XidSeen(number=number, source=KERNEL, text=text, pci="0000:19:00", at_s=at_s)


def record(number, at_s, priority=3):
    return f"{priority},77,{int(at_s * 1e6)},-;{XID.format(number)}\n SUBSYSTEM=pci\n".encode()


def entry(number, at_s, **fields):
    found = {"_TRANSPORT": "kernel", "SYSLOG_FACILITY": "0"}
    found["__MONOTONIC_TIMESTAMP"] = str(int(at_s * 1e6))
    return json.dumps({**found, "MESSAGE": XID.format(number), **fields}).encode()


@pytest.fixture
def kmsg():
    """A pair that gives a record at each read, as the kernel does: its end, and the reader's."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    log = Kmsg(ours.detach(), since_s=10.0)
    with theirs:
        yield theirs, log
    log.close()


def test_records_of_the_kernel_are_taken_from_the_beginning_on(kmsg):
    theirs, log = kmsg
    for at_s, number in ((9.0, 13), (10.0, 48), (11.5, 79)):
        theirs.send(record(number, at_s))
    theirs.send(b"6,78,12000000,-;eth0: link up\n")
    assert log.take() == [seen(48, 10.0), seen(79, 11.5)]
    assert log.take() == []


def test_the_end_of_the_kernels_messages_is_an_error(kmsg):
    theirs, log = kmsg
    theirs.close()
    with pytest.raises(OSError, match="ended"):
        log.take()


def test_what_a_program_wrote_into_the_kernels_messages_is_not_believed():
    assert parse_record(record(79, 1.0)) == seen(79, 1.0)
    assert parse_record(record(79, 1.0, priority=(1 << 3) | 3)) is None


@pytest.mark.parametrize("garbage", [b"", b";", b"a,b,c;NVRM: Xid (PCI:0000:19:00): 79", b"\xff"])
def test_garbage_is_no_record(garbage):
    assert parse_record(garbage) is None
    assert parse_journal_line(garbage) is None


def test_a_message_of_several_lines_is_one_record():
    lines = ["The NVIDIA GPU 0000:19:00.0", "(PCI ID: 10de:2330) has", "fallen off the bus"]
    text = r"\x0a".join(f"NVRM: {line}" for line in lines)
    assert parse_record(f"3,1,5000000,-;{text}\n".encode()).number == 79


def test_an_entry_of_the_journal_counts_where_it_is_the_kernels():
    assert parse_journal_line(entry(79, 3.0)) == seen(79, 3.0)
    assert parse_journal_line(entry(79, 3.0, _TRANSPORT="stdout")) is None
    assert parse_journal_line(entry(79, 3.0, SYSLOG_FACILITY="1")) is None
    as_bytes = list(XID.format(94).encode())
    assert parse_journal_line(entry(94, 3.0, MESSAGE=as_bytes)) == seen(94, 3.0)
    assert parse_journal_line(entry(94, 3.0, MESSAGE=None)) is None


def journal(tmp_path, *lines, since_s=10.0, then="time.sleep(60)"):
    """A journalctl that writes these lines, the last of them in two pieces."""
    program = tmp_path / "journalctl.py"
    data = b"".join(line + b"\n" for line in lines)
    program.write_text(
        "import os, time\n"
        f"data = {data!r}\n"
        "os.write(1, data[:-5]); time.sleep(0.02); os.write(1, data[-5:])\n"
        f"{then}\n"
    )
    return Journal([sys.executable, str(program)], since_s)


def taken(log, count):
    found = []
    while len(found) < count:
        assert select.select([log], [], [], 10)[0]
        found += log.take()
    return found


def test_the_journal_is_followed(tmp_path):
    log = journal(tmp_path, entry(13, 9.0), entry(48, 10.0), b"not JSON", entry(79, 11.0))
    try:
        assert taken(log, 2) == [seen(48, 10.0), seen(79, 11.0)]
        assert log.take() == []
    finally:
        log.close()


def test_a_journal_that_ends_is_an_error(tmp_path):
    log = journal(tmp_path, entry(48, 10.0), then="")
    try:
        with pytest.raises(OSError, match="ended"):
            taken(log, 2)
    finally:
        log.close()


def test_the_command_reads_this_boot_from_the_time_that_matters():
    command = journal_command(1_700_000_000.9)
    assert command[0] == "journalctl"
    assert {"--dmesg", "--follow", "--lines=all", "--since=@1700000000"} <= set(command)


def test_the_journal_is_read_where_the_kernels_file_may_not_be(tmp_path):
    program = tmp_path / "journalctl"
    program.write_text(f"#!{sys.executable}\nprint({entry(79, 20.0).decode()!r}, flush=True)\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    log = open_kernel_log(10.0, 1e9, kmsg=tmp_path / "none", journalctl=str(program))
    try:
        assert isinstance(log, Journal)
        assert taken(log, 1) == [seen(79, 20.0)]
    finally:
        log.close()
    assert open_kernel_log(1.0, 1e9, kmsg=tmp_path / "none", journalctl="no-such") is None


def test_the_kernels_file_goes_first(tmp_path):
    os.mkfifo(tmp_path / "kmsg")
    log = open_kernel_log(10.0, 1e9, kmsg=tmp_path / "kmsg", journalctl="no-such")
    assert isinstance(log, Kmsg)
    log.close()
