"""Whether one figure of a device is good or bad, seen sample after sample."""

from dataclasses import dataclass, field
from typing import Final, Literal

from nodeserve.health.table import Row
from nodeserve.health.window import Window
from nodeserve.wire.device_report import DeviceSample

LONGEST_STEP_S: Final = 5.0
"""How long one sample may stand for: longer ago it was not looked at, and nothing is known."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one sample says of one row: ``unknown`` where the device does not say."""

    is_: Literal["good", "bad", "unknown"]
    detail: str = ""


_GOOD: Final = Look("good")
_UNKNOWN: Final = Look("unknown")


@dataclass(slots=True)
class Gauge:
    """One row's memory of one device. Times are those of the samples."""

    row: Row
    _window: Window = field(init=False)
    _bad_since_s: float | None = None
    _seen_s: float | None = None
    _counter: int | None = None

    def __post_init__(self) -> None:
        """Make room for what the row looks back at."""
        self._window = Window(self.row.window_s)

    def look(self, sample: DeviceSample, *, now_s: float) -> Look:
        """Take the next sample, and say what it means for this row."""
        value = getattr(sample, str(self.row.field))
        match self.row.kind:
            case "rate":
                return self._rate(value, now_s)
            case "share":
                return self._share(value, now_s)
            case "absent":
                return self._held(value is None, "nothing is read", now_s)
            case _:
                if value is None:
                    return _UNKNOWN
                return self._held(self._is_out(float(value)), f"{self.row.field} {value:g}", now_s)

    def _is_out(self, value: float) -> bool:
        row = self.row
        above = row.at_least is not None and value >= row.at_least
        return above or (row.at_most is not None and value <= row.at_most)

    def _held(self, is_bad: bool, detail: str, now_s: float) -> Look:  # noqa: FBT001  (a fact)
        """Return bad once it has been so for as long as the row asks for."""
        if not is_bad:
            self._bad_since_s = None
            return _GOOD
        if self._bad_since_s is None:
            self._bad_since_s = now_s
        if now_s - self._bad_since_s < self.row.hold_s:
            return _UNKNOWN
        return Look("bad", detail)

    def _rate(self, counter: int | None, now_s: float) -> Look:
        """Return bad while the counter has grown too much; one that falls begins anew."""
        if counter is None:
            return _UNKNOWN
        grown = 0 if self._counter is None else max(0, counter - self._counter)
        self._counter = counter
        total = self._window.add(grown, now_s)
        if self.row.at_least is None or total < self.row.at_least:
            return _GOOD
        return Look("bad", f"{total:g} more within {self.row.window_s:g} s")

    def _share(self, reasons: tuple[str, ...], now_s: float) -> Look:
        """Return bad while the reason has held for too much of the window."""
        step_s = 0.0 if self._seen_s is None else min(now_s - self._seen_s, LONGEST_STEP_S)
        self._seen_s = now_s
        held_s = self._window.add(step_s if self.row.reason in reasons else 0.0, now_s)
        share = held_s / self.row.window_s
        if self.row.at_least is None or share < self.row.at_least:
            return _GOOD
        return Look("bad", f"{share:.0%} of the last {self.row.window_s:g} s")
