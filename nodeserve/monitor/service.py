"""The monitor as a whole: reads devices on time, and says what they show and what is wrong."""

import contextlib
import logging
import os
import select
from typing import Final

from nodeserve.bus.channel import BlockingControlClient
from nodeserve.clock import Clock, unix_now_s
from nodeserve.errors import PeerError
from nodeserve.monitor.desk import Desk
from nodeserve.monitor.kernel_line import KernelLine
from nodeserve.monitor.ledger_line import LedgerLine
from nodeserve.monitor.schedule import Schedule
from nodeserve.wire import control
from nodeserve.wire.device_control import (
    DeviceReported,
    HealthClear,
    MonitorHeartbeat,
    MonitorReady,
)
from nodeserve.wire.spawn import MonitorSpec

_LOG: Final = logging.getLogger(__name__)

BEAT_S: Final = 0.2
OPENING_S: Final = 10.0
"""How long a driver may take to open a GPU; one without persistence mode wakes up for seconds."""


class Monitor:
    """Reads until ``stop`` is called, in one thread: who waits for a driver does nothing else."""

    def __init__(
        self,
        spec: MonitorSpec,
        desk: Desk,
        kernel: KernelLine | None,
        clock: Clock,
    ) -> None:
        """Connect to the supervisor and the ledger; read nothing yet."""
        self._spec = spec
        self._desk = desk
        self._kernel = kernel
        self._clock = clock
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_stopped = False
        self._next_beat_s = 0.0
        identity = str(spec.generation).encode()
        self._control = BlockingControlClient(spec.control_address, identity)
        address = spec.ledger_address
        self._ledger = None if address is None else LedgerLine(address, spec.generation)

    def stop(self) -> None:
        """Make ``run`` return; also from a signal handler, and before ``run``."""
        self._is_stopped = True
        os.eventfd_write(self._wake_fd, 1)

    def run(self) -> None:
        """Open all devices, and read them.

        Raises:
            DeviceError: The driver cannot be used, or is gone.
        """
        self._open()
        ready = MonitorReady(generation=self._spec.generation, pid=os.getpid())
        self._say(ready)
        schedule = Schedule(self._clock.now_s(), unix_now_s())
        while not self._is_stopped:
            self._rest(schedule)
            now_s, unix_s = self._clock.now_s(), unix_now_s()
            is_tick, is_reading = schedule.take(now_s, unix_s)
            if is_tick:
                self._look(now_s, is_reading=is_reading)
                self._hear(ready)
            if is_reading:
                self._tell_ledger(now_s, unix_s)
            if is_tick:
                self._report(now_s, is_due=is_reading)

    def close(self) -> None:
        """Close everything."""
        self._control.close()
        if self._ledger is not None:
            self._ledger.close()
        if self._kernel is not None:
            self._kernel.close()
        self._desk.close()
        os.close(self._wake_fd)

    # ------------------------------------------------------------------------------ devices

    def _open(self) -> None:
        for name in self._desk.unopened():
            self._beat(self._clock.now_s(), next_s=OPENING_S)
            self._desk.open(name, self._clock.now_s())
        if self._ledger is not None:
            self._ledger.introduce(self._desk.meters)

    def _look(self, now_s: float, *, is_reading: bool) -> None:
        """Read every device; the heart beats in between, for a slow driver is no hung one."""
        desk = self._desk
        if desk.wake_rested(now_s):
            self._open()
        for watched in desk.watched:
            desk.read(watched, self._clock.now_s(), is_second=is_reading)
            self._beat(self._clock.now_s())
        self._beat(self._clock.now_s())
        errors = [] if self._kernel is None else self._kernel.take(now_s)
        desk.take_xids(errors, now_s)

    def _rest(self, schedule: Schedule) -> None:
        """Wait until something is due, an XID comes or we are to stop."""
        wait_s = schedule.wait_s(self._clock.now_s(), unix_now_s())
        kernel_fds = [] if self._kernel is None else self._kernel.fds()
        ready, _, _ = select.select([self._wake_fd, *kernel_fds], [], [], wait_s)
        if set(kernel_fds) & set(ready) and self._kernel is not None:
            now_s = self._clock.now_s()
            self._desk.take_xids(self._kernel.take(now_s), now_s)
            self._report(now_s, is_due=False)

    # -------------------------------------------------------------------------------- words

    def _tell_ledger(self, now_s: float, unix_s: float) -> None:
        if self._ledger is not None:
            self._ledger.listen()
            self._ledger.introduce(self._desk.meters)
            self._ledger.read(self._desk.readings(), at_s=now_s, at_unix_s=unix_s)

    def _report(self, now_s: float, *, is_due: bool) -> None:
        """Say how all devices are when it is due, or when something new is wrong."""
        if not is_due and not self._desk.has_news:
            return
        report = self._desk.report(now_s, is_second=is_due)
        self._say(DeviceReported(generation=self._spec.generation, report=report))

    def _hear(self, ready: MonitorReady) -> None:
        while (message := self._control.poll()) is not None:
            match message:
                case control.SayAgain():
                    self._say(ready)
                case HealthClear(meter=meter):
                    self._desk.forget(meter)
                case _:
                    _LOG.warning("message_ignored kind=%s", type(message).__name__)

    def _beat(self, now_s: float, next_s: float = BEAT_S) -> None:
        if now_s >= self._next_beat_s or next_s > BEAT_S:
            self._next_beat_s = now_s + BEAT_S
            self._say(MonitorHeartbeat(generation=self._spec.generation, next_s=next_s))

    def _say(self, message: control.Message) -> None:
        with contextlib.suppress(PeerError):  # the supervisor is stuck: who would care
            self._control.send(message)
