"""Real vLLM engines in forkserver children, and the plainest router that can drive them.

Speaks the EngineCore wire by the field names that the engines announce: this process imports
neither torch nor vLLM.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import msgspec
import zmq

from nodeserve.engine.vllm import environment, preload
from nodeserve.wire import control
from nodeserve.wire.control import WorkerReady
from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import EngineSpec, KvSpec, WorkerSpec
from tests.support import vllm_entry

ADD, ABORT, UTILITY = b"\x00", b"\x01", b"\x03"
START_DEADLINE_S = 90.0
ANSWER_DEADLINE_S = 30.0
ENGINE_ARGS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 2048,
    "max_num_batched_tokens": 512,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 64 << 20,
    "seed": 0,
}


class EngineRefusedError(Exception):
    """The engine did not start; the text is its deliberate error's."""


@dataclass
class Answer:
    """What a request has come to so far."""

    tokens: list[int] = field(default_factory=list)
    finish: int | None = None
    handoff: dict[str, Any] | None = None
    prefill: dict[str, int] | None = None
    outputs: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def forkserver_context(environ: dict[str, str] | None = None) -> Iterator[Any]:
    """A multiprocessing context whose forkserver has vLLM imported already, and ``environ``."""
    before = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    os.environ.update(environment.forkserver_environment())
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # In Python 3.11 a forkserver does not see the parent's sys.path.
        "PYTHONPATH": os.pathsep.join([root, before.get("PYTHONPATH", "")]),
        **(environ or {}),
    }
    context = get_context("forkserver")
    context.set_forkserver_preload([*preload.modules(), "tests.support.vllm_child"])
    try:
        yield context
    finally:
        os.environ.clear()
        os.environ.update(before)


class VllmNode:
    """Engines by generation, driven one call at a time."""

    def __init__(self, context: Any, folder: Path, model: Path) -> None:
        self.folder, self._context, self.model = folder, context, model
        self._zmq = zmq.Context()
        self._input = self._zmq.socket(zmq.ROUTER)
        self._output = self._zmq.socket(zmq.PULL)
        self._input.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._input.bind(f"ipc://{folder}/in")
        self._output.bind(f"ipc://{folder}/out")
        self.processes: dict[int, ForkServerProcess] = {}
        self._pipes: dict[int, Any] = {}
        self.ready: dict[int, WorkerReady] = {}
        self.answers: dict[str, Answer] = {}
        self.kv_usage: dict[int, float] = {}
        self._utilities: dict[int, list[Any]] = {}
        self._ids = itertools.count(1)
        self.start_deadline_s = START_DEADLINE_S
        self.answer_deadline_s = ANSWER_DEADLINE_S

    def spec(self, generation: int, kv: KvSpec, args: dict[str, Any], tp: int = 1) -> WorkerSpec:
        folder = self.folder
        return WorkerSpec(
            name=f"worker-{generation}",
            generation=generation,
            role=Role.AGGREGATED,
            runtime_dir=str(folder),
            control_address="",
            input_address=f"ipc://{folder}/in",
            output_address=f"ipc://{folder}/out",
            kv_events_address=f"ipc://{folder}/kv-{generation}",
            engine=EngineSpec(
                model=str(self.model),
                served_model_name="tiny",
                tp=tp,
                args=ENGINE_ARGS | args,
            ),
            kv=kv,
        )

    def start(self, spec: WorkerSpec) -> None:
        """Start an engine; ``wait_ready`` waits for it."""
        self.start_as(vllm_entry.run_engine, spec)

    def start_as(self, target: Callable[[bytes, Any], None], spec: WorkerSpec) -> None:
        """Start an engine by an entry of its own."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=target, args=(msgspec.msgpack.encode(spec), theirs))
        process.start()
        self.processes[spec.generation], self._pipes[spec.generation] = process, ours
        theirs.close()

    def wait_ready(self, *generations: int) -> None:
        """Return when the engines serve.

        Raises:
            EngineRefusedError: One of them refused its settings.
        """
        for generation in generations:
            pipe = self._pipes[generation]
            if not pipe.poll(self.start_deadline_s):
                raise TimeoutError(f"engine {generation} does not start; logs in {self.folder}")
            answer = pipe.recv_bytes()
            try:
                ready = control.decode(answer)
            except ValueError:
                raise EngineRefusedError(answer.decode()) from None
            assert isinstance(ready, WorkerReady)
            self.ready[generation] = ready
        blocks = {}
        for _ in generations:  # they say so in any order
            assert self._input.poll(int(START_DEADLINE_S * 1e3))
            identity, payload = self._input.recv_multipart()
            first = int.from_bytes(identity, "little")
            blocks[first] = msgspec.msgpack.decode(payload)["num_gpu_blocks"]
        assert blocks == {each: self.ready[each].num_gpu_blocks for each in generations}

    def close(self) -> None:
        """Stop the engines as a supervisor would."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.join(15)
            if process.is_alive():
                process.kill()
                process.join(5)
        self._zmq.destroy(linger=0)

    # ------------------------------------------------------------------ wire

    def add(self, generation: int, prompt: list[int], max_tokens: int, **kv: Any) -> str:
        """Send a request; ``kv`` are its kv_transfer_params."""
        extra = {"extra_args": {"kv_transfer_params": kv}} if kv else {}
        return self.ask(generation, prompt, max_tokens=max_tokens, **extra)

    def ask(self, generation: int, prompt: list[int], **sampling: Any) -> str:
        """Send a request with these sampling parameters, greedy if they do not say."""
        request_id = f"r{next(self._ids)}"
        sampling = {"temperature": 0.0, "ignore_eos": True, "output_kind": 1} | sampling
        fields: dict[str, Any] = {"request_id": request_id, "prompt_token_ids": prompt}
        fields |= {"sampling_params": sampling, "arrival_time": time.time()}
        names = self.ready[generation].fields.request
        known = {"client_index": 0, "current_wave": 0, "priority": 0, "resumable": False}
        known |= {"abort_immediately": False}
        self.answers[request_id] = Answer()
        values = [(fields | known).get(name) for name in names]
        self._send(generation, ADD, values)
        return request_id

    def abort(self, generation: int, request_id: str) -> None:
        self._send(generation, ABORT, [request_id])

    def call(self, generation: int, method: str, *args: Any) -> Any:
        """Call a utility and return its result."""
        call_id = next(self._ids)
        self._send(generation, UTILITY, [0, call_id, method, list(args)])
        self._receive_until(lambda: call_id in self._utilities)
        _, failure, result = self._utilities.pop(call_id)
        assert failure is None, failure
        return result[1]

    def until_free(self, generation: int) -> None:
        """Return when the engine says, unasked, that none of its blocks is in use."""
        self.kv_usage.pop(generation, None)
        self._receive_until(lambda: self.kv_usage.get(generation) == 0)

    def finish(self, request_id: str) -> Answer:
        """Return the request's answer once it is complete."""
        self._receive_until(lambda: self.answers[request_id].finish is not None)
        return self.answers[request_id]

    def started(self, request_id: str) -> None:
        """Return once the request has produced a token."""
        self._receive_until(lambda: bool(self.answers[request_id].tokens))

    def produced(self, request_id: str, num_tokens: int) -> None:
        """Return once the request has produced that many tokens."""
        self._receive_until(lambda: len(self.answers[request_id].tokens) >= num_tokens)

    def whole(self, generation: int, prompt: list[int], max_tokens: int) -> Answer:
        return self.finish(self.add(generation, prompt, max_tokens))

    def prefill(self, generation: int, prompt: list[int]) -> dict[str, Any]:
        """Run a prefill leg and return its handoff."""
        answer = self.finish(self.add(generation, prompt, 1, do_remote_decode=True))
        assert answer.handoff is not None
        return answer.handoff

    def decode(
        self, generation: int, prompt: list[int], max_tokens: int, handoff: dict[str, Any]
    ) -> Answer:
        return self.finish(self.add(generation, prompt, max_tokens, **handoff))

    def release(self, handoff: dict[str, Any]) -> None:
        self.call(handoff["engine"], "nodeserve_release", [handoff["lease_id"]])

    def stats(self, generation: int) -> Any:
        return self.call(generation, "nodeserve_kv_stats")

    def cache_is_free(self, generation: int) -> bool:
        """Whether no block is in use; forgets the prefix cache, which vLLM does only then."""
        return bool(self.call(generation, "reset_prefix_cache", False, False))

    def _send(self, generation: int, kind: bytes, payload: Any) -> None:
        identity = generation.to_bytes(2, "little")
        self._input.send_multipart([identity, kind, msgspec.msgpack.encode(payload)])

    def _receive_until(self, is_done: Any) -> None:
        deadline = time.monotonic() + self.answer_deadline_s
        while not is_done():
            left_s = max(0.0, deadline - time.monotonic())
            if not self._output.poll(int(left_s * 1e3)):
                raise TimeoutError(
                    f"no answer in {self.answer_deadline_s} s; logs in {self.folder}"
                )
            self._take(self._output.recv_multipart()[0])

    def _take(self, frame: bytes) -> None:
        names = next(iter(self.ready.values())).fields
        message = dict(zip(names.outputs, msgspec.msgpack.decode(frame), strict=False))
        if stats := message.get("scheduler_stats"):
            self.kv_usage[message["engine_index"]] = stats["kv_cache_usage"]
        if utility := message.get("utility_output"):
            self._utilities[utility[0]] = utility
        for values in message["outputs"]:
            output = dict(itertools.zip_longest(names.output, values))
            answer = self.answers[output["request_id"]]
            answer.outputs.append(output)
            answer.tokens += output["new_token_ids"]
            answer.finish = output.get("finish_reason")
            answer.handoff = output.get("kv_transfer_params")
            answer.prefill = answer.prefill or output.get("prefill_stats")
