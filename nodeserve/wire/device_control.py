"""What the monitor and the supervisor say to each other.

These are control messages like those of ``wire.control``, which knows them by its union.
The monitor's identity on the control channel is its generation in decimal digits.
"""

import msgspec

from nodeserve.wire.device_report import DeviceReport


class _Message(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """A control message."""


# ------------------------------------------------------------------- monitor to supervisor


class MonitorReady(_Message, frozen=True, kw_only=True):
    """The monitor has looked at every device and reads them. Repeated after SayAgain."""

    generation: int
    pid: int


class MonitorHeartbeat(_Message, frozen=True, kw_only=True):
    """Sent by what reads the devices itself: one that waits for a driver is silent.

    ``next_s`` is when the next one follows.
    """

    generation: int
    next_s: float = 0.2


class DeviceReported(_Message, frozen=True, kw_only=True):
    """All devices and what is wrong with them: about every second, and at once for news."""

    generation: int
    report: DeviceReport


# ------------------------------------------------------------------- supervisor to monitor


class HealthClear(_Message, frozen=True, kw_only=True):
    """All is well again with a device, says an operator; with None as ``meter`` with all of them.

    The supervisor lifts its fences and tells the monitor the same, which forgets its findings.
    """

    meter: str | None = None


DeviceMessage = MonitorReady | MonitorHeartbeat | DeviceReported | HealthClear
