"""Keep a node's processes alive when the program that should supervise them cannot."""

import logging
import os
import signal
from typing import Final

from nodeserve.supervisor.handover import HELD_SIGNALS, Handover
from nodeserve.supervisor.plan import DISPATCHER

_log = logging.getLogger(__name__)

EXIT_SOFTWARE: Final = 70
GRACE_S: Final = 10.0


def take_care(state: Handover) -> int:
    """Let everything run that runs, until SIGTERM or until nothing can serve; return 70.

    Requests do not pass the supervisor, so the node serves on. Nothing that dies comes back,
    and nobody answers commands.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    names = {child.pid: child.name for child in state.children.children}
    _log.critical("supervisor_lost the node serves on unsupervised; restart the daemon soon")
    _reap(names)
    while DISPATCHER in names.values():
        number = signal.sigwait(HELD_SIGNALS)
        if number in (signal.SIGTERM, signal.SIGINT):
            break
        _reap(names)
    for pid in names:
        os.kill(pid, signal.SIGTERM)
    while names and signal.sigtimedwait({signal.SIGCHLD}, GRACE_S) is not None:
        _reap(names)
    return EXIT_SOFTWARE  # the kernel ends who is left


def _reap(names: dict[int, str]) -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            names.clear()
            return
        if pid == 0:
            return
        if (name := names.pop(pid, None)) is not None:
            _log.error("process_exited name=%s pid=%d", name, pid)
