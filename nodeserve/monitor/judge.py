"""What the monitor asks of the judge of devices' health: ``health.verdict.Verdicts``."""

from typing import Protocol

from nodeserve.wire.device_report import DeviceSample, Finding


class Judge(Protocol):
    """Takes what is seen, and says what is wrong. It reads no clock and does nothing."""

    def take(self, sample: DeviceSample, *, now_s: float) -> None:
        """Take a device's sample."""
        ...

    def xid(self, meter: str, number: int, *, detail: str, now_s: float) -> None:
        """Take an XID; an empty ``meter`` is of a GPU that cannot be named."""
        ...

    def recovery_action(self, meter: str, value: int | None, *, now_s: float) -> None:
        """Take the driver's own verdict, NVML's field 230; None where it has none to give."""
        ...

    def lost(self, meter: str, *, now_s: float) -> None:
        """Take note that the driver does not reach a GPU."""
        ...

    def hung(self, meter: str, *, now_s: float) -> None:
        """Take note that the driver does not answer for a GPU."""
        ...

    def state(self, meter: str, signal: str, *, detail: str | None, now_s: float) -> None:
        """Take what a look-up has found for a signal; None where all is well."""
        ...

    def clear(self, meter: str | None) -> int:
        """Forget the findings of a device, or with None of all; return how many there were."""
        ...

    def findings(self, *, now_s: float) -> tuple[Finding, ...]:
        """Return all that is wrong."""
        ...
