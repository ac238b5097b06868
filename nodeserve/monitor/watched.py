"""One device as the monitor sees it: what was read of it last, and what follows."""

from typing import Final

from nodeserve.device.base import Condition, Device, Now, State
from nodeserve.device.throttle import reason_names
from nodeserve.errors import DeviceLostError
from nodeserve.monitor.idle_power import IdlePower
from nodeserve.wire.accounting import Meter, Reading
from nodeserve.wire.device_report import DeviceSample

_PAUSE_S: Final = 1.0
"""Power that was not read for longer than this is not integrated over."""


class Watched:
    """Reads a device and keeps what it said. Times are ``now_s`` of the caller.

    Attributes:
        device: Who is asked.
        lost: Why its driver did not reach it at the last call; None where it did.
        condition: As last read.
        state: As last read.
    """

    def __init__(self, device: Device, now_s: float) -> None:
        self.device = device
        self.lost: DeviceLostError | None = None
        self.state = State()
        self.condition = Condition()
        self._now = Now()
        self._read_s = now_s
        self._throttle = 0
        self._idle = IdlePower()
        self._integral = _Integral() if device.meter.source == "nvml-power" else None
        self._slope = _Slope(device.meter.wraps_at_mj)

    @property
    def meter(self) -> Meter:
        """What it is."""
        return self.device.meter

    @property
    def is_lost(self) -> bool:
        """Whether its driver did not reach it at the last call."""
        return self.lost is not None

    def read_now(self, now_s: float) -> None:
        """Ask for what changes at once; raises DeviceError where the driver is gone."""
        try:
            now = self.device.read_now()
        except DeviceLostError as error:
            self._lose(error)
            return
        self.lost = None
        self._now, self._read_s = now, now_s
        self._throttle |= now.throttle or 0
        if self._integral is not None:
            self._integral.take(now_s, now.power_mw)
        self._idle.take(
            now_s,
            power_mw=now.power_mw,
            clock_mhz=now.sm_clock_mhz,
            is_idle=self.state.utilization == 0,
        )

    def read_state(self, now_s: float) -> None:
        """Ask for what changes in seconds; raises DeviceError where the driver is gone."""
        try:
            self.state = self.device.read_state()
        except DeviceLostError as error:
            self._lose(error)
        self._slope.take(now_s, self._now.counter_mj)

    def read_condition(self) -> None:
        """Ask for what should never change; raises DeviceError where the driver is gone."""
        try:
            self.condition = self.device.read_condition()
        except DeviceLostError as error:
            self._lose(error)

    def reading(self) -> Reading:
        """Return what its meter shows."""
        now = self._now
        return Reading(
            meter=self.meter.meter,
            counter_mj=self._counter_mj(),
            power_mw=self._power_mw(),
            idle_mw=self._idle.at(now.sm_clock_mhz),
        )

    def begin_second(self) -> None:
        """Gather throttle reasons anew."""
        self._throttle = self._now.throttle or 0

    def sample(self, now_s: float, *, xids: int) -> DeviceSample:
        """Return all that is known of it, and all throttle reasons since the second began."""
        now, state, condition = self._now, self.state, self.condition
        down = len(condition.nvlinks_down)
        return DeviceSample(
            meter=self.meter.meter,
            index=self.meter.index,
            name=self.meter.name,
            age_s=round(max(0.0, now_s - self._read_s), 3),
            power_mw=self._power_mw(),
            power_limit_mw=state.power_limit_mw,
            idle_mw=self._idle.at(now.sm_clock_mhz),
            energy_mj=self._counter_mj(),
            sm_clock_mhz=now.sm_clock_mhz,
            memory_clock_mhz=state.memory_clock_mhz,
            temperature_c=state.temperature_c,
            memory_temperature_c=state.memory_temperature_c,
            memory_used_bytes=state.memory_used_bytes,
            memory_total_bytes=state.memory_total_bytes,
            utilization=state.utilization,
            throttle_reasons=reason_names(self._throttle),
            ecc_corrected=condition.ecc_corrected,
            ecc_uncorrected=condition.ecc_uncorrected,
            remapped_rows=condition.remapped_rows,
            remap_pending=condition.remap_pending,
            remap_failed=condition.remap_failed,
            nvlink_errors=condition.nvlink_errors,
            pcie_replays=condition.pcie_replays,
            xids=xids,
            is_lost=self.is_lost,
            slowdown_temperature_c=condition.slowdown_temperature_c,
            num_nvlinks=condition.num_nvlinks,
            num_nvlinks_down=None if condition.num_nvlinks is None else down,
            recovery_action=condition.recovery_action,
        )

    def _counter_mj(self) -> int | None:
        return self._now.counter_mj if self._integral is None else self._integral.counter_mj

    def _power_mw(self) -> int | None:
        """Return the power it says, or that its counter shows."""
        return self._slope.power_mw if self._now.power_mw is None else self._now.power_mw

    def _lose(self, cause: DeviceLostError) -> None:
        """Know nothing of a device that is gone; what it said last is not so any more."""
        self.lost = cause
        self._now, self.state = Now(), State()
        if self._integral is not None:
            self._integral.pause()


class _Integral:
    """Energy from power, for cards that do not count: an estimate, and named so by its meter."""

    def __init__(self) -> None:
        self.counter_mj: int | None = None
        self._total_mj = 0.0
        self._last: tuple[float, int] | None = None

    def take(self, now_s: float, power_mw: int | None) -> None:
        if power_mw is None:
            self.pause()
            return
        if self._last is not None and now_s - self._last[0] <= _PAUSE_S:
            self._total_mj += (now_s - self._last[0]) * (power_mw + self._last[1]) / 2
        self._last = (now_s, power_mw)
        self.counter_mj = int(self._total_mj)

    def pause(self) -> None:
        self._last = None


class _Slope:
    """Power from a counter, for devices that say none: the mean since the last look."""

    def __init__(self, wraps_at_mj: int | None) -> None:
        self.power_mw: int | None = None
        self._wraps_at_mj = wraps_at_mj
        self._last: tuple[float, int] | None = None

    def take(self, now_s: float, counter_mj: int | None) -> None:
        last = self._last
        self._last = None if counter_mj is None else (now_s, counter_mj)
        self.power_mw = None
        if last is None or counter_mj is None or now_s <= last[0]:
            return
        grown_mj = counter_mj - last[1]
        if grown_mj < 0 and self._wraps_at_mj is not None:
            grown_mj += self._wraps_at_mj
        if grown_mj >= 0:
            self.power_mw = round(grown_mj / (now_s - last[0]))
