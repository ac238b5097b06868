"""The kernel's messages for the monitor: opened again where they end, and matched with GPUs."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from nodeserve.device.base import XidSeen
from nodeserve.device.kernel_log import SwitchError
from nodeserve.device.kernel_messages import KernelLog

_LOG: Final = logging.getLogger(__name__)

RETRY_S: Final = 10.0
MAX_RETRY_S: Final = 3600.0
"""Messages that end again at once are asked for ever more seldom: they may not be ours to read."""

_AT_ONCE_S: Final = 60.0

Opener = Callable[[float], KernelLog | None]
"""Opens the messages from a time on, on the monotonic clock; None where they cannot be had."""


class KernelLine:
    """Takes errors out of the kernel's messages, from ``since_s`` on."""

    def __init__(self, opener: Opener, since_s: float) -> None:
        self._open = opener
        self._since_s = since_s
        self._log: KernelLog | None = None
        self._retry_s: float | None = 0.0
        self._pause_s = RETRY_S
        self._opened_s = 0.0

    def fds(self) -> list[int]:
        """Return what is readable when there is something to take."""
        return [] if self._log is None else [self._log.fileno()]

    def take(self, now_s: float) -> list[XidSeen | SwitchError]:
        """Return what has come, without waiting."""
        if self._log is None and self._retry_s is not None and now_s >= self._retry_s:
            self._retry_s = None  # what cannot be had now cannot be had later
            self._opened_s = now_s
            self._log = self._open(self._since_s)
        if self._log is None:
            return []
        try:
            found = self._log.take()
        except OSError as error:
            _LOG.warning("kernel_log_ended cause=%s", error)
            self.close()
            was_short = now_s - self._opened_s < _AT_ONCE_S
            pause_s = self._pause_s if was_short else RETRY_S
            self._pause_s = min(2 * pause_s, MAX_RETRY_S)
            self._retry_s = now_s + pause_s
            return []
        self._since_s = now_s
        return found

    def close(self) -> None:
        """Let go of the messages."""
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()
            self._log = None


def with_meters(
    errors: list[XidSeen | SwitchError], meters: Mapping[str, str]
) -> Iterator[tuple[str, XidSeen]]:
    """Yield XIDs with the meter of their GPU, by ``meters`` of PCI addresses.

    Those of GPUs that are not watched, and errors of switches, are for people to read.
    """
    for error in errors:
        if isinstance(error, SwitchError):
            _LOG.warning(
                "nvswitch_error pci=%s number=%d text=%r", error.pci, error.number, error.text
            )
            continue
        meter = error.meter or meters.get(error.pci or "")
        if meter is None:
            _LOG.info("xid_of_no_gpu_of_ours pci=%s number=%d", error.pci, error.number)
            continue
        yield meter, error
