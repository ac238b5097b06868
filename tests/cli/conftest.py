"""A daemon that answers the command line as a test tells it to."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner, Result

from nodeserve.cli.main import cli
from nodeserve.wire import control
from nodeserve.wire.kinds import ProcessKind, Role
from nodeserve.wire.status import HandoffStats, ProcessStatus, Quantiles, WorkerLoad


class FakeDaemon:
    """Binds the control socket of a node at ``socket`` and answers from its own thread."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.inside = socket.with_name(socket.name + ".d")
        self.inside.mkdir(mode=0o700)
        self.heard: list[control.Message] = []
        self.answers: list[control.Message] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(f"ipc://{self.inside}/control.sock")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        self._router.close(linger=0)
        self._context.term()

    def _serve(self) -> None:
        while not self._stop.is_set():
            if not self._router.poll(10):
                continue
            identity, frame = self._router.recv_multipart()
            self.heard.append(control.decode(frame))
            answer = self.answer_to(self.heard[-1])
            if answer is not None:
                self._router.send_multipart([identity, control.encode(answer)])

    def answer_to(self, _message: control.Message) -> control.Message | None:
        """Return the next answer; the last one again and again."""
        return self.answers.pop(0) if len(self.answers) > 1 else next(iter(self.answers), None)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    made = FakeDaemon(tmp_path / "api.sock")
    yield made
    made.close()


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run ``nodeserve`` with these words in this process."""

    def runs(*words: object, **settings) -> Result:
        return CliRunner().invoke(cli, [str(word) for word in words], **settings)

    return runs


def a_status(**changes) -> control.StatusReply:
    worker = ProcessStatus(
        name="decode-0",
        kind=ProcessKind.WORKER,
        state="ready",
        generation=3,
        pid=42,
        role=Role.DECODE,
        uptime_s=3725.0,
        restarts=1,
        load=WorkerLoad(generation=3, role=Role.DECODE, running=5, waiting=2, kv_usage=0.25),
    )
    down = ProcessStatus(
        name="prefill-0",
        kind=ProcessKind.WORKER,
        state="failed",
        role=Role.PREFILL,
        detail="no memory left",
    )
    given = {
        "state": "ready",
        "socket": "/run/ns/api.sock",
        "version": "0.1.0",
        "vllm_version": "0.32.0",
        "model": "/models/tiny",
        "served_model_name": "tiny",
        "uptime_s": 90_061.0,
        "listeners": ("/run/ns/api.sock", "127.0.0.1:8000"),
        "processes": (worker, down),
        "requests": control.DispatcherStatus(
            call_id=1,
            running_requests=5,
            finished_requests=7,
            ttft=Quantiles(count=7, p50_ms=12.5, p99_ms=80.0),
            handoffs=HandoffStats(completed=6, bytes=3 << 20),
        ),
    }
    return control.StatusReply(**{**given, **changes})
