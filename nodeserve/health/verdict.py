"""From what devices show and the driver says to findings, each with what it asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeserve.errors import InvariantError
from nodeserve.health.sample import Gauge
from nodeserve.health.table import OTHER_XID, Row, Table
from nodeserve.health.window import Window
from nodeserve.wire.device_report import ACTIONS, SEVERITIES, DeviceSample, Finding

LOOK_EVERY_S: Final = 1.0
"""More samples say no more about health, and ten a second for eight GPUs would cost a core's
hundredth."""

NODE: Final = ""
"""The meter of what concerns the whole node, or of a GPU that nobody can name."""

_EPSILON_S: Final = 0.05
_NONE: Final = 0


@dataclass(slots=True)
class _Episode:
    """A finding that has not gone: since when it is, and since when it has been good again."""

    since_s: float
    detail: str
    last_s: float
    good_since_s: float | None = None
    times: int = 1
    is_bad: bool = True
    escalated: bool = False


@dataclass(slots=True)
class _Device:
    """What is remembered of one device; ``verdict`` is the driver's, and when it was asked."""

    gauges: dict[str, Gauge]
    looked_s: float | None = None
    verdict: tuple[int, float] | None = None
    counts: dict[str, Window] = field(default_factory=dict)


class Verdicts:
    """Takes what the monitor sees and says what is wrong. Reads no clock and does nothing.

    After an XID ask the driver for its verdict, and hand that in before ``findings``: it wins over
    the table, as far as it was given after the XID. A verdict of none makes what the table would
    fence for a restart, and lets it clear by itself.
    """

    def __init__(self, table: Table, *, unix_offset_s: float) -> None:
        """Begin with nothing wrong; ``unix_offset_s`` is Unix time minus the ``now_s`` given."""
        self._table = table
        self._unix_offset_s = unix_offset_s
        self._devices: dict[str, _Device] = {}
        self._episodes: dict[tuple[str, str], _Episode] = {}
        self._xids = {row.number: s for s, row in table.items() if row.source == "xid"}
        self._recoveries = {row.number: s for s, row in table.items() if row.source == "recovery"}

    # ------------------------------------------------------------------------- what is seen

    def take(self, sample: DeviceSample, *, now_s: float) -> None:
        """Take a device's sample; more than one a second are not looked at."""
        device = self._device(sample.meter)
        if device.looked_s is not None and now_s - device.looked_s < LOOK_EVERY_S - _EPSILON_S:
            return
        device.looked_s = now_s
        for signal, gauge in device.gauges.items():
            look = gauge.look(sample, now_s=now_s)
            if look.is_ == "bad":
                self._is_bad(sample.meter, signal, look.detail, now_s)
            elif look.is_ == "good":
                self._is_good(sample.meter, signal, now_s)

    def xid(self, meter: str, number: int, *, detail: str, now_s: float) -> None:
        """Take an XID; an empty ``meter`` is of a GPU that cannot be named."""
        signal = self._xids.get(number, OTHER_XID)
        text = detail if signal != OTHER_XID else f"XID {number}: {detail}"
        self._happened(meter, signal, text, now_s)

    def recovery_action(self, meter: str, value: int | None, *, now_s: float) -> None:
        """Take the driver's verdict (NVML field 230); None where it has none to give."""
        self._device(meter).verdict = None if value is None else (value, now_s)
        asked = None if value in (None, _NONE) else self._recovery_signal(value)
        for signal in self._recoveries.values():
            if signal == asked:
                self._is_bad(meter, signal, f"verdict {value}", now_s)
            elif value is not None:
                self._is_good(meter, signal, now_s)

    def lost(self, meter: str, *, now_s: float) -> None:
        """Take note that the driver calls a GPU lost, or counts fewer than there were."""
        self._is_bad(meter, "gpu_lost", "the driver does not reach it", now_s)

    def hung(self, meter: str, *, now_s: float) -> None:
        """Take note that the driver did not answer for a GPU within its deadline."""
        self._is_bad(meter, "driver_hung", "a call passed its deadline", now_s)

    def state(self, meter: str, signal: str, *, detail: str | None, now_s: float) -> None:
        """Take what a look-up of one ``state`` or ``call`` row has found; None where all is well.

        Raises:
            InvariantError: The table has no such row.
        """
        if signal not in self._table or self._table[signal].source not in ("state", "call"):
            raise InvariantError(f"health: {signal} is no signal that is looked up")
        if detail is None:
            self._is_good(meter, signal, now_s)
        else:
            self._is_bad(meter, signal, detail, now_s)

    def clear(self, meter: str | None, signal: str | None = None) -> int:
        """Forget the findings of a device, or one of them; return how many there were.

        With None as ``meter`` of all devices. What is still bad becomes a finding anew.
        """
        gone = [
            key for key in self._episodes if meter in (None, key[0]) and signal in (None, key[1])
        ]
        for key in gone:
            del self._episodes[key]
            counts = self._device(key[0]).counts
            counts.pop(self._table[key[1]].group or key[1], None)
        return len(gone)

    # ----------------------------------------------------------------------------- findings

    def findings(self, *, now_s: float) -> tuple[Finding, ...]:
        """Return all that is wrong, the worst first; what has been good for long enough goes."""
        found = []
        for key, episode in list(self._episodes.items()):
            finding = self._finding(*key, episode)
            row = self._table[key[1]]
            good_s = episode.good_since_s
            is_over = good_s is not None and now_s - good_s >= row.clear_after_s
            if is_over and finding.severity != "fatal":
                del self._episodes[key]
            else:
                found.append(finding)
        found.sort(key=lambda f: (-SEVERITIES.index(f.severity), f.meter, f.signal))
        return tuple(found)

    def _finding(self, meter: str, signal: str, episode: _Episode) -> Finding:
        row = self._table[signal]
        severity, action, why = row.severity, row.action, row.provenance
        if row.is_overridden:
            why = f"the operator's choice, health.overrides.{signal}; {why}"
        detail = f"{row.what}: {episode.detail}" if episode.detail else row.what
        if episode.times > 1:
            detail += f" ({episode.times} times)"
        verdict = self._device(meter).verdict
        if episode.escalated and row.escalates is not None:
            action = row.escalates.action
            why = f"{row.escalates.times} times within {row.escalates.within_s:g} s; {why}"
            severity = "fatal" if action.startswith("fence") else severity
        elif row.source == "xid" and verdict is not None and verdict[1] >= episode.last_s:
            severity, action, why = self._by_verdict(row, verdict[0], why)
        if meter == NODE and action in ("drain", "restart", "fence"):
            severity, action = min(severity, "error", key=SEVERITIES.index), "warn"
            why = f"nobody knows which GPU it is; {why}"
        return Finding(
            meter=meter,
            signal=signal,
            severity=severity,
            action=action,
            detail=detail,
            provenance=why,
            since_unix_s=round(episode.since_s + self._unix_offset_s, 3),
        )

    def _by_verdict(self, row: Row, value: int, why: str) -> tuple[str, str, str]:
        """Return an XID's severity, action and reason where the driver has given its verdict."""
        if value == _NONE:
            action = min(row.action, "restart", key=ACTIONS.index)
            severity = min(row.severity, "error", key=SEVERITIES.index)
            if action == row.action:
                return row.severity, row.action, why
            return severity, action, f"the driver sees nothing to recover (field 230); {why}"
        signal = self._recovery_signal(value)
        decides = self._table[signal]
        return decides.severity, decides.action, f"the driver's verdict {signal} (field 230); {why}"

    # ------------------------------------------------------------------------------- memory

    def _device(self, meter: str) -> _Device:
        if meter not in self._devices:
            self._devices[meter] = _Device(_gauges(self._table))
        return self._devices[meter]

    def _recovery_signal(self, value: int | None) -> str:
        return self._recoveries.get(value, self._recoveries[None])

    def _happened(self, meter: str, signal: str, detail: str, now_s: float) -> None:
        """Take an event: it is over at once, and good from then on until the next one."""
        self._occurred(meter, signal, detail, now_s)
        episode = self._episodes[meter, signal]
        episode.is_bad, episode.good_since_s = False, now_s

    def _is_bad(self, meter: str, signal: str, detail: str, now_s: float) -> None:
        episode = self._episodes.get((meter, signal))
        if episode is None or not episode.is_bad:
            self._occurred(meter, signal, detail, now_s)
            return
        episode.detail, episode.last_s = detail, now_s

    def _is_good(self, meter: str, signal: str, now_s: float) -> None:
        episode = self._episodes.get((meter, signal))
        if episode is not None and episode.is_bad:
            episode.is_bad, episode.good_since_s = False, now_s

    def _occurred(self, meter: str, signal: str, detail: str, now_s: float) -> None:
        """Begin a finding, or count it once more while it has not gone.

        Each time that asks for a restart is a new finding: so is what it asks for.
        """
        row = self._table[signal]
        episode = self._episodes.setdefault(
            (meter, signal), _Episode(now_s, detail, now_s, times=0)
        )
        episode.times += 1
        episode.detail, episode.last_s = detail, now_s
        episode.is_bad, episode.good_since_s = True, None
        if row.action == "restart":
            episode.since_s = now_s
        if row.escalates is not None:
            counts = self._device(meter).counts
            window = counts.setdefault(row.group or signal, Window(row.escalates.within_s))
            if window.add(1.0, now_s) >= row.escalates.times:
                episode.escalated = True


def _gauges(table: Mapping[str, Row]) -> dict[str, Gauge]:
    return {signal: Gauge(row) for signal, row in table.items() if row.source == "sample"}
