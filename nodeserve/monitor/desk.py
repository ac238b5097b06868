"""All devices together: who is read when, what XIDs are theirs, and what is wrong with them."""

import logging
from collections.abc import Sequence
from typing import Final

from nodeserve.clock import Clock
from nodeserve.device.base import RESET_REQUIRED, XidSeen
from nodeserve.device.kernel_log import SwitchError
from nodeserve.monitor.call_marks import DRIVER
from nodeserve.monitor.judge import Judge
from nodeserve.monitor.kernel_line import with_meters
from nodeserve.monitor.looked_up import is_nvlink_fatal, look
from nodeserve.monitor.sources import Sources
from nodeserve.monitor.watched import Watched
from nodeserve.monitor.xids import XidMerge
from nodeserve.wire.accounting import Meter, Reading
from nodeserve.wire.device_report import DeviceReport

_LOG: Final = logging.getLogger(__name__)

CONDITION_S: Final = 10.0
"""How often a device is asked for what should never change."""

SPREAD_S: Final = 0.7
"""How much later than its neighbour, so that no tick has to wait for all of them."""


class Desk:
    """Keeps the devices' account.

    Attributes:
        watched: The devices that are read.
        has_news: Whether something has happened since the last report that may be a new finding.
    """

    def __init__(self, sources: Sources, judge: Judge, clock: Clock) -> None:
        """Open nothing yet but what cannot hang."""
        self._sources = sources
        self._marks = sources.marks
        self._judge = judge
        self._xids = XidMerge()
        self._others = [Watched(device, clock.now_s()) for device in sources.open_others()]
        self._gpus: dict[str, Watched] = {}
        self._by_pci: dict[str, str] = {}
        self._next_condition_s: dict[str, float] = {}
        self.watched: list[Watched] = list(self._others)
        self.has_news = False

    @property
    def meters(self) -> tuple[Meter, ...]:
        """What is metered."""
        return tuple(watched.meter for watched in self.watched)

    def unopened(self) -> list[str]:
        """Return the GPUs that are to be opened; those whose driver hung are left alone."""
        hung = self._sources.hung
        return [name for name in self._sources.gpus if name not in self._gpus and name not in hung]

    def wake_rested(self, now_s: float) -> bool:
        """Let those be asked again that have hung and rested since; return whether there are."""
        rested = self._marks.rested(now_s)
        self._marks.hung.difference_update(rested)
        return bool(rested)

    def open(self, name: str, now_s: float) -> None:
        """Open a GPU; this may hang. Raises DeviceError where the driver cannot be used."""
        device = self._sources.open_gpu(name)
        self._gpus[name] = Watched(device, now_s)
        if device.pci is not None:
            self._by_pci[device.pci] = name
        by_number = (self._gpus[gpu] for gpu in self._sources.gpus if gpu in self._gpus)
        self.watched = [*by_number, *self._others]

    def read(self, watched: Watched, now_s: float, *, is_second: bool) -> None:
        """Read what is due of a device; this may hang. Raises DeviceError without a driver."""
        name = watched.meter.meter
        if name not in self._gpus:
            watched.read_now(now_s)
            if is_second:
                watched.read_state(now_s)
            return
        was_lost = watched.is_lost
        if was_lost and not is_second:
            return
        with self._marks.asking(name, now_s):
            watched.read_now(now_s)
            if is_second and not watched.is_lost:
                watched.read_state(now_s)
            if not watched.is_lost and now_s >= self._next_condition_s.get(name, 0.0):
                self._read_condition(watched, now_s)
        if watched.is_lost and not was_lost:
            _LOG.error("gpu_lost gpu=%s cause=%s", name, watched.lost)
            self._judge_lost(watched, now_s)
            self.has_news = True

    def take_xids(self, errors: Sequence[XidSeen | SwitchError], now_s: float) -> None:
        """Take what the kernel's messages told, and what drivers tell."""
        told = [*errors, *self._sources.take_xids()]
        for meter, xid in with_meters(told, self._by_pci):
            at_s = now_s if xid.at_s is None else min(xid.at_s, now_s)
            if not self._xids.is_new(meter, xid.number, xid.source, at_s):
                continue
            _LOG.warning(
                "xid gpu=%s number=%d source=%s text=%r", meter, xid.number, xid.source, xid.text
            )
            self._judge.xid(meter, xid.number, detail=xid.text, now_s=at_s)
            if is_nvlink_fatal(xid.number, xid.text):
                self._judge.state(meter, "nvlink_fatal", detail=xid.text, now_s=at_s)
            self.has_news = True
            self._ask_driver(meter, now_s)

    def forget(self, meter: str | None) -> None:
        """Forget a device's findings, or with None all, as an operator wishes."""
        num_forgotten = self._judge.clear(meter)
        _LOG.info("findings_forgotten gpu=%s count=%d", meter or "all", num_forgotten)
        self.has_news = True

    def readings(self) -> tuple[Reading, ...]:
        """Return what all meters show."""
        return tuple(watched.reading() for watched in self.watched)

    def report(self, now_s: float, *, is_second: bool = True) -> DeviceReport:
        """Judge all devices as they are now; ``is_second`` ends the second that is judged."""
        self.has_news = False
        hung = self._sources.hung
        for name in hung:
            self._judge.hung(name, now_s=now_s)
        samples = []
        for watched in self.watched:
            name = watched.meter.meter
            sample = watched.sample(now_s, xids=self._xids.count(name))
            samples.append(sample)
            if is_second:
                watched.begin_second()
            if watched.is_lost:
                self._judge_lost(watched, now_s)
            elif name in self._gpus:
                self._judge.take(sample, now_s=now_s)
        return DeviceReport(
            samples=tuple(samples),
            findings=self._judge.findings(now_s=now_s),
            energy_source=self._energy_source(),
            hung=hung,
        )

    def close(self) -> None:
        """Let go of all devices."""
        self._sources.close()

    def _read_condition(self, watched: Watched, now_s: float) -> None:
        """Ask for what should never change, and judge it."""
        name = watched.meter.meter
        watched.read_condition()
        if watched.is_lost:
            return
        if name in self._next_condition_s:
            self._next_condition_s[name] = now_s + CONDITION_S
            self._marks.answered(DRIVER)
            self._marks.answered(name)  # it has been read for a while: this is no lucky call
        else:
            self._next_condition_s[name] = now_s + CONDITION_S + watched.meter.index * SPREAD_S
        condition = watched.condition
        self._judge.recovery_action(name, condition.recovery_action, now_s=now_s)
        for signal, detail in look(condition, watched.state):
            self._judge.state(name, signal, detail=detail, now_s=now_s)

    def _judge_lost(self, watched: Watched, now_s: float) -> None:
        name, cause = watched.meter.meter, watched.lost
        if cause is not None and cause.code == RESET_REQUIRED:
            self._judge.state(name, "gpu_reset_required", detail=str(cause), now_s=now_s)
        else:
            self._judge.lost(name, now_s=now_s)

    def _ask_driver(self, name: str, now_s: float) -> None:
        """Ask for the driver's own verdict, which wins over the XID."""
        watched = self._gpus.get(name)
        if watched is not None and not watched.is_lost:
            with self._marks.asking(name, now_s):
                self._read_condition(watched, now_s)

    def _energy_source(self) -> str | None:
        """Return where most of the energy is read from; None where no counter is read."""
        for watched in self.watched:
            if watched.reading().counter_mj is not None:
                return watched.meter.source
        return None
