"""A monitor in a process of its own, between a supervisor and a ledger that only listen."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import zmq

from nodeserve.bus.sockets import bind, open_socket
from nodeserve.wire import control
from nodeserve.wire.accounting import MetersRead, decode_to_ledger, encode_message
from nodeserve.wire.device_control import DeviceReported
from nodeserve.wire.device_report import DeviceReport
from nodeserve.wire.spawn import MonitorSpec

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0


class MonitorRig:
    """Starts monitors and keeps what they say, with the time of hearing it.

    Attributes:
        entry: The module that is run.
        said: To the supervisor; told: to the ledger. Oldest first, each with its time.
    """

    entry = "tests.support.monitor_entry"

    def __init__(self, folder: Path, **fields) -> None:
        folder.chmod(0o700)
        self.folder = folder
        self.said: list[tuple[float, control.Message]] = []
        self.told: list[tuple[float, object]] = []
        self.process: subprocess.Popen | None = None
        self.kmsg_fd: int | None = None
        self._generation = 0
        self._began_s = time.monotonic()
        self._fields = {"powercap_root": None, **fields}
        self._context = zmq.Context()
        self._control = open_socket(self._context, zmq.ROUTER)
        self._ledger = open_socket(self._context, zmq.ROUTER)
        bind(self._control, f"ipc://{folder}/control")
        bind(self._ledger, f"ipc://{folder}/ledger")

    def start(self) -> None:
        self._generation += 1
        spec = MonitorSpec(
            generation=self._generation,
            runtime_dir=str(self.folder),
            control_address=f"ipc://{self.folder}/control",
            run_began_s=self._began_s,
            **{"ledger_address": f"ipc://{self.folder}/ledger", **self._fields},
        )
        fds = [] if self.kmsg_fd is None else [self.kmsg_fd]
        arguments = [msgspec.msgpack.encode(spec).hex(), str(fds[0]) if fds else "none"]
        command = [sys.executable, "-m", self.entry, *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, pass_fds=fds)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._context.destroy(linger=0)

    def tell(self, message: control.Message) -> None:
        """Say something to the monitor as its supervisor."""
        self._control.send_multipart([str(self._generation).encode(), control.encode(message)])

    def answer(self, message) -> None:
        """Say something to the monitor as its ledger."""
        self._ledger.send_multipart([str(self._generation).encode(), encode_message(message)])

    def hear(self, within_s: float) -> None:
        """Take what comes until the time is over."""
        until_s = time.monotonic() + within_s
        while (left_s := until_s - time.monotonic()) > 0:
            self._take(left_s)

    def wait_for(self, find, deadline_s: float = DEADLINE_S):
        """Return what ``find()`` returns, once that is true."""
        until_s = time.monotonic() + deadline_s
        while not (found := find()):
            left_s = until_s - time.monotonic()
            assert left_s > 0, f"not within {deadline_s} s"
            assert self.process.poll() is None, f"ended with {self.process.returncode}"
            self._take(min(left_s, 0.1))
        return found

    def next_report(self) -> DeviceReport:
        """Return the next report that comes."""
        seen = len(self.reports)
        self.wait_for(lambda: self.reports[seen:])
        return self.reports[-1]

    def next_read(self) -> MetersRead:
        """Return the next readings that come."""
        seen = len(self.reads)
        self.wait_for(lambda: self.reads[seen:])
        return self.reads[-1]

    def cpu_s(self) -> float:
        """Return the CPU time that the monitor has used, by all its threads."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def reports(self) -> list[DeviceReport]:
        return [said.report for _, said in self.said if isinstance(said, DeviceReported)]

    @property
    def reads(self) -> list[MetersRead]:
        return [told for _, told in self.told if isinstance(told, MetersRead)]

    def sample(self, meter: str):
        """Return a device as it was last reported."""
        found = {sample.meter: sample for sample in self.reports[-1].samples}
        return found.get(meter)

    def findings(self) -> set[tuple[str, str]]:
        """Return what is wrong, as last reported."""
        if not self.reports:
            return set()
        return {(finding.meter, finding.signal) for finding in self.reports[-1].findings}

    def _take(self, within_s: float) -> None:
        ready = zmq.select([self._control, self._ledger], [], [], within_s)[0]
        now_s = time.monotonic()
        for socket, log, decode in (
            (self._control, self.said, control.decode),
            (self._ledger, self.told, decode_to_ledger),
        ):
            if socket in ready:
                with contextlib.suppress(zmq.Again):
                    while True:
                        log.append((now_s, decode(socket.recv_multipart(zmq.NOBLOCK)[1])))
