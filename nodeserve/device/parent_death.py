"""Has the kernel end a process with the one that started it."""

import ctypes
import os
import signal
from typing import Final

from nodeserve.errors import PeerError

_PR_SET_PDEATHSIG: Final = 1
"""Source: linux/prctl.h."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that became its parent ends.

    Call it from a process's main thread, after it has been adopted; the parent may have ended
    before.

    Raises:
        PeerError: The kernel cannot.
    """
    if _LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        error = os.strerror(ctypes.get_errno())
        text = f"prctl(PR_SET_PDEATHSIG) failed: {error}; nodeserve needs Linux 5.4 or newer"
        raise PeerError(text)
