"""Fakes on both sides of a worker: an engine, and the way to the supervisor."""

import threading
from collections.abc import Callable

import pytest

from nodeserve.engine.simulated.wire import FIELDS
from nodeserve.errors import PeerError
from nodeserve.wire.control import Message, WorkerReady
from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import EngineSpec, KvSpec, WorkerSpec


class FakeChannel:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.asked: list[Message] = []
        self.is_full = False
        self.came = threading.Condition()

    def send(self, message: Message) -> None:
        with self.came:
            if self.is_full:
                raise PeerError("control socket: no room; read it")
            self.messages.append(message)
            self.came.notify_all()

    def poll(self) -> Message | None:
        return self.asked.pop(0) if self.asked else None

    def wait_for(self, count: int) -> list[Message]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.messages) >= count, timeout=10)
            return list(self.messages)


class FakeEngine:
    def __init__(self, ready: WorkerReady) -> None:
        self._ready = ready
        self.steps = 0
        self.num_requests = 0
        self.recorder = None
        self.on_start: Callable[[], None] = lambda: None
        self.run_error: Exception | None = None
        self.stopped = threading.Event()
        self.calls: list[str] = []

    def start(self) -> WorkerReady:
        self.calls.append("start")
        self.on_start()
        return self._ready

    def run(self) -> None:
        self.calls.append("run")
        if self.run_error:
            raise self.run_error
        # A signal that comes just before a wait does not end it: engines look up now and then.
        assert any(self.stopped.wait(0.05) for _ in range(600))

    def stop(self) -> None:
        self.stopped.set()


@pytest.fixture
def channel() -> FakeChannel:
    return FakeChannel()


@pytest.fixture
def spec() -> WorkerSpec:
    return WorkerSpec(
        name="decode-1",
        generation=4,
        role=Role.DECODE,
        runtime_dir="/run/x",
        control_address="ipc:///run/x/control.sock",
        input_address="ipc:///run/x/in.sock",
        output_address="ipc:///run/x/out.sock",
        kv_events_address="ipc:///run/x/kv.sock",
        engine=EngineSpec(model="m", served_model_name="m", tp=1, args={}),
        kv=KvSpec(),
    )


@pytest.fixture
def ready(spec) -> WorkerReady:
    return WorkerReady(
        name=spec.name,
        generation=spec.generation,
        fields=FIELDS,
        ready=b"",
        block_size=16,
        num_gpu_blocks=10,
        kv_block_bytes=1024,
        max_model_len=100,
    )


@pytest.fixture
def engine(ready) -> FakeEngine:
    return FakeEngine(ready)
