"""The supervisor's side of the monitor's reports, and of `nodeserve health`."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from nodeserve.errors import NodeserveError
from nodeserve.lifecycle.messages import Event, FindingsCleared, FindingsReported
from nodeserve.lifecycle.node import NodeLife
from nodeserve.wire import control
from nodeserve.wire.device_control import DeviceReported, HealthClear
from nodeserve.wire.device_report import DeviceReport, DeviceSample, Finding
from nodeserve.wire.kinds import ProcessKind

_log: Final = logging.getLogger(__name__)


class DeviceDesk:
    """Keeps the last report, and hands what is wrong to the node's life.

    A monitor that is gone changes nothing: what it said last holds until the next one speaks.
    """

    def __init__(
        self,
        life: NodeLife,
        *,
        apply: Callable[[Event], None],
        answer: Callable[[bytes, control.Message], None],
    ) -> None:
        self._life = life
        self._apply = apply
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._report = DeviceReport()
        self._heard_s = 0.0

    @property
    def devices(self) -> tuple[DeviceSample, ...]:
        """Every device as last seen."""
        since_s = self._loop.time() - self._heard_s
        return tuple(
            msgspec.structs.replace(sample, age_s=round(sample.age_s + since_s, 3))
            for sample in self._report.samples
        )

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All that is wrong, and what GPUs are fenced for."""
        return self._life.kept.devices.all_findings

    def hear(self, asked_by: bytes, message: DeviceReported | HealthClear) -> None:
        """Take a report of the monitor, or a command about its findings."""
        match message:
            case DeviceReported(report=report):
                self._report, self._heard_s = report, self._loop.time()
                self._apply(FindingsReported(report.findings))
            case HealthClear():
                self._answer(asked_by, self._clear(message))

    def _clear(self, message: HealthClear) -> control.CommandReply:
        _log.info("operator_asks command=health_clear meter=%s", message.meter or "all")
        before = len(self.findings)
        try:
            self._apply(FindingsCleared(message.meter))
        except NodeserveError as error:
            return control.CommandReply(error=str(error), exit_code=error.exit_code)
        for slot in self._life.slots.values():
            if slot.kind is ProcessKind.MONITOR and slot.running:
                self._answer(str(slot.generation).encode(), message)
        number = before - len(self.findings)
        whose = "all GPUs" if message.meter is None else f"GPU {message.meter}"
        return control.CommandReply(detail=f"{whose}: {number} findings are cleared")
