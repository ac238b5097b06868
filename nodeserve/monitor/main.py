"""The monitor's process."""

import gc
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

import msgspec

from nodeserve.clock import MonotonicClock, unix_now_s
from nodeserve.device.health_table import read_table
from nodeserve.device.kernel_messages import KernelLog, open_kernel_log
from nodeserve.health.table import with_overrides
from nodeserve.health.verdict import Verdicts
from nodeserve.monitor.desk import Desk
from nodeserve.monitor.judge import Judge
from nodeserve.monitor.kernel_line import KernelLine
from nodeserve.monitor.service import Monitor
from nodeserve.monitor.sources import Sources
from nodeserve.telemetry.logging import setup
from nodeserve.wire.spawn import MonitorSpec

_LOG: Final = logging.getLogger(__name__)
_DECODER: Final = msgspec.msgpack.Decoder(MonitorSpec)

_BEFORE_S: Final = 2.0
"""How much the wall clock may have been set back since the node began."""

OpenKernelLog = Callable[[float, float], KernelLog | None]
"""Opens the kernel's messages from a time on, given on the monotonic and on the wall clock."""

MakeJudge = Callable[[MonitorSpec, float], Judge]
"""Makes the judge; it is given Unix time minus monotonic time."""


def run(spec_bytes: bytes, fds: list[int]) -> None:  # noqa: ARG001  (the forkserver calls it so)
    """Read devices until SIGTERM; the entry point of the monitor's process.

    Args:
        spec_bytes: A MonitorSpec, msgpack.
        fds: None are needed.

    Raises:
        ConfigError: An address, the simulated system or an operator's action is none.
        DeviceError: The driver cannot be used, or is gone.
    """
    serve(spec_bytes, open_kernel_log, judge_by_table)


def serve(spec_bytes: bytes, open_log: OpenKernelLog, make_judge: MakeJudge) -> None:
    """Do as ``run``, with the kernel's messages and the judge of devices' health given."""
    setup()
    spec = _DECODER.decode(spec_bytes)
    clock = MonotonicClock()
    offset_s = unix_now_s() - clock.now_s()

    def open_since(since_s: float) -> KernelLog | None:
        return open_log(since_s, since_s + offset_s - _BEFORE_S)

    kernel = KernelLine(open_since, spec.run_began_s) if spec.kernel_log else None
    desk = Desk(Sources(spec, clock), make_judge(spec, offset_s), clock)
    monitor = Monitor(spec, desk, kernel, clock)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _calling(monitor.stop))
    gc.collect()
    gc.freeze()
    _LOG.info("monitor_started generation=%d gpus=%d", spec.generation, len(spec.gpu_uuids))
    try:
        monitor.run()
    finally:
        monitor.close()
    _LOG.info("monitor_ended generation=%d", spec.generation)


def judge_by_table(spec: MonitorSpec, unix_offset_s: float) -> Verdicts:
    """Judge by the table that this release ships, with an operator's actions.

    Raises:
        ConfigError: They name a signal or an action that there is not.
    """
    table = with_overrides(read_table(), spec.health_overrides)
    return Verdicts(table, unix_offset_s=unix_offset_s)


def _calling(action: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        action()

    return handle
