"""An engine without a model: it keeps vLLM's wire, its scheduling and its time."""

import hashlib
import os
from pathlib import Path

import msgspec
import zmq

from nodeserve.bus.sockets import bind, open_socket
from nodeserve.clock import MonotonicClock
from nodeserve.device.simulated_load import EngineLoad
from nodeserve.engine.base import Progress
from nodeserve.engine.simulated.loop import OUTPUT_HIGH_WATER, EngineLoop, Sockets
from nodeserve.engine.simulated.sizing import Sizing, size_engine
from nodeserve.engine.simulated.tier import Tier
from nodeserve.engine.simulated.tier_slots import TierSlots
from nodeserve.engine.simulated.wire import FIELDS
from nodeserve.engine.step_log import StepRecorder
from nodeserve.engine.tier_client import TierClient
from nodeserve.errors import InvariantError
from nodeserve.wire.control import WorkerReady
from nodeserve.wire.kinds import HANDOFF, PROBE, RESUME
from nodeserve.wire.kv_tier import KvHello
from nodeserve.wire.spawn import WorkerSpec


class SimulatedEngine:
    """Implements ``engine.base.Engine``.

    Requests are answered with deterministic tokens (``tokens``), as fast as the performance
    model says, divided by ``speedup``. They end at ``max_tokens`` or a stop token, never at the
    end-of-sequence token. Grammars are ignored: a structured output is the same plain text.
    Logprobs are made up: each sampled token has one half. A resumed request continues at the
    position behind its restored tokens, which are taken as they come.

    Messages that are not EngineCore's are dropped with a warning.

    Attributes:
        recorder: What it computes, from ``start`` on; None where nobody accounts for it.
    """

    def __init__(self, spec: WorkerSpec, progress: Progress) -> None:
        self._spec = spec
        self._progress = progress
        self._loop: EngineLoop | None = None
        self.recorder: StepRecorder | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._stop_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def steps(self) -> int:
        """Turns of the engine loop that had work; see ``EngineLoop``."""
        return self._loop.steps if self._loop else 0

    @property
    def num_requests(self) -> int:
        """Requests that have not ended; 0 before ``start``."""
        return self._loop.num_requests if self._loop else 0

    def start(self) -> WorkerReady:
        """Size the engine, connect, and say ready on the wire.

        Raises:
            ConfigError: The model cannot be read or does not fit, or an address is unusable.
        """
        spec = self._spec
        self._progress("sizing the simulated engine")
        sizing = size_engine(spec)
        sockets = self._open_sockets()
        if spec.ledger_address is not None:
            self.recorder = StepRecorder(sizing.work, now_s=MonotonicClock().now_s())
        self._loop = EngineLoop(
            sizing,
            sockets,
            self._stop_fd,
            tier=self._open_tier(sizing),
            recorder=self.recorder,
            load=EngineLoad(Path(spec.runtime_dir), spec.meters) if spec.meters else None,
        )
        ready = msgspec.msgpack.encode(sizing.ready_map(f"{spec.name}-{spec.generation}"))
        sockets.requests.send(ready)
        self._progress(f"simulates {sizing.profile.name} ({sizing.profile.source})")
        return WorkerReady(
            name=spec.name,
            generation=spec.generation,
            fields=FIELDS,
            ready=ready,
            block_size=sizing.limits.block_size,
            num_gpu_blocks=sizing.limits.num_blocks,
            kv_block_bytes=sizing.limits.block_bytes,
            max_model_len=sizing.max_model_len,
            kv_events_endpoint=spec.kv_events_address,
            features=(HANDOFF, PROBE, RESUME),
        )

    def run(self) -> None:
        """Serve until ``stop`` is called; what runs then is dropped.

        Raises:
            InvariantError: The engine was not started.
        """
        if self._loop is None:
            raise InvariantError(f"worker {self._spec.name}: engine runs before it was started")
        try:
            self._loop.run()
        finally:
            self._context.destroy(linger=0)

    def stop(self) -> None:
        """Make ``run`` return within one step's bookkeeping, even if it is not called yet."""
        if self._loop is None:
            os.eventfd_write(self._stop_fd, 1)
        else:
            self._loop.stop()

    def _open_tier(self, sizing: Sizing) -> Tier | None:
        """Greet the block manager, if the node has one."""
        spec = self._spec
        if spec.kv.tier_address is None or not sizing.limits.prefix_caching:
            return None
        hello = KvHello(
            worker=spec.name,
            generation=spec.generation,
            pid=os.getpid(),
            model=spec.engine.model,
            kv_format=kv_format(sizing),
            block_bytes=sizing.limits.block_bytes,
        )
        client = TierClient(spec.kv.tier_address, hello, MonotonicClock(), self._context)
        return Tier(client, TierSlots(client), sizing.limits)

    def _open_sockets(self) -> Sockets:
        spec = self._spec
        identity = spec.generation.to_bytes(2, "little")
        requests = open_socket(self._context, zmq.DEALER, identity=identity)
        requests.connect(spec.input_address)
        outputs = open_socket(self._context, zmq.PUSH, high_water_messages=OUTPUT_HIGH_WATER)
        outputs.connect(spec.output_address)
        kv_events = open_socket(self._context, zmq.PUB)
        bind(kv_events, spec.kv_events_address)
        return Sockets(requests, outputs, kv_events)


def kv_format(sizing: Sizing) -> bytes:
    """Return the digest of what decides which simulated engines may share blocks."""
    limits = sizing.limits
    text = f"simulated 1 {sizing.profile.name} {limits.block_size} {limits.block_bytes}"
    return hashlib.sha256(text.encode()).digest()
