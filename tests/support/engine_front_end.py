"""A front end for one engine: binds its sockets, sends requests and gathers outputs."""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from nodeserve.engine.base import Engine
from nodeserve.engine.select import create
from nodeserve.wire.control import WorkerReady
from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import EngineSpec, KvSpec, WorkerSpec

ADD, ABORT, UTILITY = b"\x00", b"\x01", b"\x03"
DEADLINE_S: Final = 30.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


@dataclass
class Outcome:
    """What came back for one request."""

    tokens: list[int] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    came_s: list[float] = field(default_factory=list)
    finish_reason: int | None = None
    kv_transfer_params: dict[str, Any] | None = None

    @property
    def prefill_stats(self) -> dict[str, int]:
        return next(out["prefill_stats"] for out in self.outputs if out["prefill_stats"])


class FrontEnd:
    """Stands where the dispatcher stands, for one worker."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Start the engine of ``spec`` on a thread of its own."""
        self.spec = spec
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.requests = self.context.socket(zmq.ROUTER)
        self.requests.bind(spec.input_address)
        self.outputs = self.context.socket(zmq.PULL)
        self.outputs.setsockopt(zmq.RCVHWM, 16)
        self.outputs.bind(spec.output_address)
        self.kv_events = self.context.socket(zmq.SUB)
        self.kv_events.subscribe(b"")
        self.engine: Engine = create(spec, lambda _: None)
        self.ready: WorkerReady = self.engine.start()
        self.kv_events.connect(spec.kv_events_address)
        self.identity, self.ready_frame = self._receive(self.requests)
        self.thread = threading.Thread(target=self.engine.run, daemon=True)
        self.thread.start()
        self.outcomes: dict[str, Outcome] = {}
        self.answers: dict[int, list[Any]] = {}
        self.stats: list[dict[str, Any]] = []
        self._calls = itertools.count(1)

    def close(self) -> None:
        self.engine.stop()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        self.context.destroy(linger=0)

    def add(
        self,
        request_id: str,
        prompt: list[int],
        request_fields: dict[str, Any] | None = None,
        **sampling: Any,
    ) -> None:
        request = dict.fromkeys(self.ready.fields.request)
        request |= {
            "request_id": request_id,
            "prompt_token_ids": prompt,
            "sampling_params": {"temperature": 0.0, "ignore_eos": True} | sampling,
            "arrival_time": time.time(),
            "client_index": 0,
            "current_wave": 0,
            "priority": 0,
            "resumable": False,
            "abort_immediately": False,
        }
        request |= request_fields or {}
        self.outcomes[request_id] = Outcome()
        self.send(ADD, list(request.values()))

    def abort(self, *request_ids: str) -> None:
        self.send(ABORT, request_ids)

    def send(self, kind: bytes, message: object) -> None:
        self.requests.send_multipart([self.identity, kind, _encode(message)])

    def new_outcome(self) -> Outcome:
        return Outcome()

    def next_kv_event(self) -> tuple[bytes, int, list[Any]]:
        topic, number, payload = self._receive(self.kv_events)
        return topic, int.from_bytes(number, "big"), _decode(payload)

    def call(self, method: str, *args: Any) -> Any:
        call_id = next(self._calls)
        self.send(UTILITY, [0, call_id, method, args])
        self.until(lambda: call_id in self.answers)
        _, failure, result = self.answers.pop(call_id)
        if failure is not None:
            raise RuntimeError(failure)
        return result[1]

    def run(self, request_id: str, prompt: list[int], **sampling: Any) -> Outcome:
        self.add(request_id, prompt, **sampling)
        return self.finished(request_id)

    def finished(self, request_id: str) -> Outcome:
        outcome = self.outcomes[request_id]
        self.until(lambda: outcome.finish_reason is not None)
        return outcome

    def until(self, is_so: Callable[[], bool], within_s: float = DEADLINE_S) -> None:
        until_s = time.monotonic() + within_s
        while not is_so():
            left_ms = int((until_s - time.monotonic()) * 1000)
            assert left_ms > 0, "the engine did not get there in time"
            if self.outputs.poll(left_ms):
                self._take(_decode(self.outputs.recv_multipart()[0]))

    def _receive(self, sock: "zmq.Socket[bytes]") -> list[bytes]:
        assert sock.poll(int(DEADLINE_S * 1000)), "the engine said nothing"
        return sock.recv_multipart()

    def _take(self, message: list[Any]) -> None:
        outputs = dict(zip(self.ready.fields.outputs, message, strict=False))
        if outputs["scheduler_stats"] is not None:
            self.stats.append(outputs["scheduler_stats"])
        if outputs["utility_output"] is not None:
            self.answers[outputs["utility_output"][0]] = outputs["utility_output"]
        for row in outputs["outputs"]:
            output = dict(itertools.zip_longest(self.ready.fields.output, row))
            outcome = self.outcomes[output["request_id"]]
            outcome.tokens += output["new_token_ids"]
            outcome.outputs.append(output)
            outcome.came_s.append(outputs["timestamp"])
            outcome.finish_reason = output["finish_reason"]
            outcome.kv_transfer_params = output["kv_transfer_params"]


def worker_spec(directory: Path, name: str, generation: int, engine: EngineSpec) -> WorkerSpec:
    """Return a worker's spec with all its sockets in ``directory``."""
    directory.mkdir(mode=0o700, exist_ok=True)
    return WorkerSpec(
        name=name,
        generation=generation,
        role=Role.AGGREGATED,
        runtime_dir=str(directory),
        control_address=f"ipc://{directory}/control.sock",
        input_address=f"ipc://{directory}/{name}-in.sock",
        output_address=f"ipc://{directory}/{name}-out.sock",
        kv_events_address=f"ipc://{directory}/{name}-kv.sock",
        engine=engine,
        kv=KvSpec(lease_ttl_s=60.0),
    )
