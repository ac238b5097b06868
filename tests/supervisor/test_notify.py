import os
import socket
import time

import pytest

from nodeserve.supervisor.notify import PRIVATE_VARIABLES, Notifier, notifier_of_this_process

PID = 4711


@pytest.fixture
def manager(tmp_path):
    """The manager's end, and the environment that it starts a daemon with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening, {"NOTIFY_SOCKET": str(tmp_path / "notify")}


def heard(listening):
    return listening.recv(65536).decode().split("\n")


def test_each_message_is_one_datagram_of_assignments(manager):
    listening, environ = manager
    notifier = Notifier(environ, PID)
    notifier.ready("serving")
    assert heard(listening) == ["READY=1", "STATUS=serving"]
    notifier.status("degraded")
    assert heard(listening) == ["STATUS=degraded"]
    notifier.stopping("draining")
    assert heard(listening) == ["STOPPING=1", "STATUS=draining"]
    notifier.alive()
    assert heard(listening) == ["WATCHDOG=1"]
    notifier.extend(2.5)
    assert heard(listening) == ["EXTEND_TIMEOUT_USEC=2500000"]


def test_a_reload_carries_its_time_on_the_monotonic_clock(manager):
    listening, environ = manager
    before_us = time.monotonic_ns() // 1000
    Notifier(environ, PID).reloading()
    first, second = heard(listening)
    assert first == "RELOADING=1"
    assert before_us <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_line_break_in_a_status_begins_no_other_assignment(manager):
    listening, environ = manager
    Notifier(environ, PID).status("worker died\nMAINPID=1")
    assert heard(listening) == ["STATUS=worker died MAINPID=1"]


def test_an_abstract_socket_is_reached():
    name = f"nodeserve-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        Notifier({"NOTIFY_SOCKET": "@" + name}, PID).alive()
        assert heard(listening) == ["WATCHDOG=1"]


def test_without_a_manager_nothing_happens():
    notifier = Notifier({}, PID)
    notifier.ready("serving")
    assert not notifier.has_manager
    assert notifier.watchdog_s is None


def test_a_manager_that_is_gone_or_takes_nothing_is_no_error(tmp_path, manager):
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, PID).alive()
    listening, environ = manager
    notifier = Notifier(environ, PID)
    for _ in range(1000):  # more than the kernel queues: none of them may block
        notifier.alive()
    assert heard(listening) == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(PID)}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_only_a_watchdog_on_this_process_counts(environ, watchdog_s):
    assert Notifier(environ, PID).watchdog_s == watchdog_s


def test_this_process_reads_its_own_environment(monkeypatch, manager):
    listening, environ = manager
    monkeypatch.setenv("NOTIFY_SOCKET", environ["NOTIFY_SOCKET"])
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    notifier = notifier_of_this_process()
    notifier.alive()
    assert heard(listening) == ["WATCHDOG=1"]
    assert notifier.watchdog_s == 3
    assert set(environ) <= PRIVATE_VARIABLES
