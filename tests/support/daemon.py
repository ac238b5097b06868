"""The daemon as an operator runs it: a process, its socket, its status, its end."""

import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import httpx

from nodeserve.bus.channel import BlockingControlClient
from nodeserve.wire import control
from nodeserve.wire.control import StatusReply
from nodeserve.wire.status import ProcessStatus

START_DEADLINE_S: Final = 180.0
STOP_DEADLINE_S: Final = 60.0
READY: Final = "nodeserve is ready"


class Daemon:
    """One run of ``nodeserve serve``."""

    def __init__(self, socket: Path, words: Sequence[str]) -> None:
        self.socket = socket
        self.words = [sys.executable, "-m", "nodeserve.cli.main", "serve", *words]
        self.words[5:5] = ["--socket", str(socket)]
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            self.words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://node", timeout=120
        )

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for_line(self, text: str, within_s: float = START_DEADLINE_S) -> str:
        """Return the first line with ``text`` in it."""
        until_s = time.monotonic() + within_s
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left_s)
            except queue.Empty:
                break
            if line is None:
                break
            self.said.append(line)
            if text in line:
                return line
        raise AssertionError(f"the daemon never said {text!r}, but:\n{''.join(self.said[-60:])}")

    def wait_ready(self) -> "Daemon":
        """Return when the node serves."""
        self.wait_for_line(READY)
        return self

    def ask(self, message: control.Message, within_s: float = 30.0) -> control.Message:
        """Send one control message and return the answer."""
        address = f"ipc://{self.socket}.d/control.sock"
        client = BlockingControlClient(address, b"c" + os.urandom(8))
        try:
            return client.request(message, within_s)
        finally:
            client.close()

    def status(self) -> StatusReply:
        """Return the node's status."""
        reply = self.ask(control.StatusRequest())
        assert isinstance(reply, StatusReply)
        return reply

    def command(self, message: control.Message, within_s: float = 60.0) -> control.CommandReply:
        """Give a command and return its outcome."""
        reply = self.ask(message, within_s)
        assert isinstance(reply, control.CommandReply)
        return reply

    def process_named(self, name: str) -> ProcessStatus:
        """Return one process's status."""
        return next(process for process in self.status().processes if process.name == name)

    def wait_until(
        self, what: Callable[[StatusReply], bool], within_s: float = 60.0
    ) -> StatusReply:
        """Return the first status that satisfies ``what``."""
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s:
            status = self.status()
            if what(status):
                return status
            time.sleep(0.02)  # status has no event to wait for
        raise AssertionError(f"never came true within {within_s:g} s; last: {status}")

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal one process of the node; return its pid."""
        pid = self.process_named(name).pid
        assert pid is not None
        os.kill(pid, number)
        return pid

    def complete(self, prompt: str | list[int], **more: Any) -> dict[str, Any]:
        """Return the answer to one completion request."""
        body = {"model": self.model, "prompt": prompt, "temperature": 0, **more}
        response = self.client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    @cached_property
    def model(self) -> str:
        """The name that clients call the model."""
        return self.status().served_model_name

    def pids(self) -> list[int]:
        """Return the pids of all processes of the node."""
        return [process.pid for process in self.status().processes if process.pid is not None]

    def stop(self) -> int:
        """Ask the daemon to drain and end; return its exit code."""
        self.process.terminate()
        return self.process.wait(STOP_DEADLINE_S)

    def close(self) -> None:
        """End the daemon however it is."""
        self.client.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def daemon(folder: Path, *words: str) -> Iterator[Daemon]:
    """Run a daemon for the block, on a socket in ``folder``."""
    running = Daemon(folder / "api.sock", words)
    try:
        yield running
    finally:
        running.close()


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process ends within a deadline."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(pidfd)
        return bool(poller.poll(within_s * 1000))
    finally:
        os.close(pidfd)
