"""What the supervisor asks of the Linux kernel about its descendants."""

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import Final

from nodeserve.errors import PeerError

# Source: linux/prctl.h.
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36

MAX_FILES: Final = 1 << 19
"""As many as systemd lets a service open."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Adopt every descendant whose parent dies, so that each process of the node is ours."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def forgo_oom_protection(adjustment: Path = Path("/proc/self/oom_score_adj")) -> None:
    """Give up what ``OOMScoreAdjust=`` gave the supervisor, and every child inherits.

    When memory runs out, an engine is to go before the supervisor, which can replace it.
    """
    if int(adjustment.read_text()) < 0:
        adjustment.write_text("0")


def allow_many_files() -> None:
    """Let this process and its children open as many files as they may: a client is one.

    The usual soft limit of 1024 is meant for programs that wait for clients by select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def name_process(name: str) -> None:
    """Set what `ps -o comm` shows; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def send_signal(pidfd: int, number: signal.Signals) -> None:
    """Signal the very process a pidfd was opened for; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = os.strerror(ctypes.get_errno())
        text = f"prctl({option}, {value}) failed: {error}; nodeserve needs Linux 5.4 or newer"
        raise PeerError(text)
