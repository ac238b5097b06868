"""The worker side: who is attached behind the port that every engine connects to."""

import logging
from collections.abc import Callable
from typing import Any, Final

from nodeserve.dispatcher.metrics import EngineGauges
from nodeserve.dispatcher.ports import Ports, Timer
from nodeserve.dispatcher.records import Leg
from nodeserve.errors import InvariantError, PeerError
from nodeserve.ids import Generation
from nodeserve.router.messages import LegKind
from nodeserve.wire.codec import decode_map, encode
from nodeserve.wire.control import AttachWorker
from nodeserve.wire.engine_core import ABORT, generation_of, identity_of
from nodeserve.wire.kinds import RESUME, Role

_LOG: Final = logging.getLogger(__name__)

PROBE_S: Final = 0.025
"""How often an engine that has not said hello is looked for. ZeroMQ's own try to connect again
comes every 100 ms."""

_NOTHING: Final = encode([])
"""An ABORT of no request: it does nothing, and only arrives where an engine listens."""


class Worker:
    """One attached worker.

    ``unstarted`` counts the legs, by kind, that have not answered yet; ``streams`` are those that
    have, by the ids that the engine knows: the hot path looks in here. ``told_waiting`` is
    whether the router was last told that some wait inside the engine.
    """

    __slots__ = (
        "attached",
        "gauges",
        "generation",
        "generation_tokens",
        "identity",
        "name",
        "prompt_tokens",
        "ready",
        "role",
        "streams",
        "told_waiting",
        "unstarted",
    )

    def __init__(self, attached: AttachWorker) -> None:
        """Raises ValueError when its ready response cannot be read."""
        self.attached = attached
        self.ready: dict[str, Any] = decode_map(attached.ready.ready)
        self.name = attached.name
        self.generation = Generation(attached.generation)
        self.identity = identity_of(self.generation)
        self.role: Role = attached.role
        self.gauges = EngineGauges(attached.ready.num_gpu_blocks)
        self.unstarted = dict.fromkeys(LegKind, 0)
        self.streams: dict[str, Leg] = {}
        self.told_waiting = False
        self.prompt_tokens = 0
        self.generation_tokens = 0


class WorkerTable:
    """The attached workers.

    A worker is attached when the supervisor has said so and its engine can be sent to. It can
    once it has said hello; but it says so once in its life, so behind a dispatcher that was
    restarted an engine shows itself only by what can be sent to it.

    Attributes:
        attached: By generation; the hot path looks in here.
        rejected_frames: Messages of engines that were not a hello.
    """

    def __init__(self, ports: Ports, on_attached: Callable[[Worker], None]) -> None:
        self.attached: dict[int, Worker] = {}
        self.rejected_frames = 0
        self._on_attached = on_attached
        self._waiting: dict[int, Worker] = {}
        self._connected: set[int] = set()
        self._retired: set[int] = set()
        self._probe_timer: Timer | None = None
        self._ports = ports
        self._port = ports.engines(self._on_hello)

    def attach(self, message: AttachWorker) -> None:
        """Take a worker in, now or as soon as its engine can be sent to.

        Raises:
            PeerError: Its ready response is garbage.
            InvariantError: Its generation was attached before; nothing changed.
        """
        generation = message.generation
        if any(generation in seen for seen in (self.attached, self._waiting, self._retired)):
            text = f"worker {message.name}: generation {generation} was attached before; report it"
            raise InvariantError(text)
        try:
            worker = Worker(message)
        except ValueError as error:
            text = f"worker {message.name}: {error}; restart it"
            raise PeerError(text) from error
        if generation in self._connected:
            self._take_in(worker)
        else:
            self._waiting[generation] = worker
            self._probe_later()

    def retire(self, generation: int) -> Worker | None:
        """Fence a generation for good; returns its worker if it was attached."""
        self._retired.add(generation)
        self._waiting.pop(generation, None)
        return self.attached.pop(generation, None)

    def find(self, generation: int) -> Worker | None:
        """Return a worker that is attached, or will be as soon as its engine can be sent to."""
        return self.attached.get(generation) or self._waiting.get(generation)

    @property
    def num_awaited(self) -> int:
        """How many workers are to be attached as soon as their engines can be sent to."""
        return len(self._waiting)

    @property
    def can_resume(self) -> bool:
        """Whether every attached engine continues what another one began."""
        return all(RESUME in worker.attached.ready.features for worker in self.attached.values())

    def send(self, worker: Worker, kind: bytes, payload: bytes, aux: list[bytes]) -> None:
        """Send one message to an engine.

        Raises:
            PeerError: It is gone or does not read; the caller retires it.
        """
        try:
            self._port.send([worker.identity, kind, payload, *aux])
        except PeerError as error:
            text = f"worker {worker.name} generation {worker.generation}: {error.__cause__}"
            raise PeerError(text) from error

    def close(self) -> None:
        """Close the port and look for nobody any more."""
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self._port.close()

    def _on_hello(self, frames: list[bytes]) -> None:
        try:
            generation = generation_of(frames[0])
            decode_map(frames[-1])
        except ValueError:
            self.rejected_frames += 1
            return
        self._connected.add(generation)
        worker = self._waiting.pop(generation, None)
        if worker is not None:
            self._take_in(worker)

    def _probe_later(self) -> None:
        if self._probe_timer is None and self._waiting:
            self._probe_timer = self._ports.call_later(PROBE_S, self._probe)

    def _probe(self) -> None:
        """Take in who waits and can be sent to; whoever cannot is looked for again."""
        self._probe_timer = None
        for generation in list(self._waiting):
            worker = self._waiting.get(generation)
            if worker is None:
                continue  # taking in another one ended it
            try:
                self.send(worker, ABORT, _NOTHING, [])
            except PeerError:
                continue
            self._connected.add(generation)
            del self._waiting[generation]
            self._take_in(worker)
        self._probe_later()

    def _take_in(self, worker: Worker) -> None:
        self.attached[worker.generation] = worker
        _LOG.info("worker_attached worker=%s generation=%d", worker.name, worker.generation)
        self._on_attached(worker)


def node_ready(workers: list[Worker]) -> dict[str, Any]:
    """Return the ready response of the node: one engine with all workers' room.

    What differs between workers without adding up is the first one's; the model's length is
    the shortest, for any worker may get any request.
    """
    ready = dict(workers[0].ready)
    for name in ("num_gpu_blocks", "kv_cache_size_tokens", "max_num_seqs"):
        values = [worker.ready[name] for worker in workers if worker.ready.get(name) is not None]
        if values:
            ready[name] = sum(values)
    lengths = [worker.attached.ready.max_model_len for worker in workers]
    ready["max_model_len"] = min(lengths)
    ready.update(data_parallel_size=1, data_parallel_rank=0)
    for name in ("dp_stats_address", "kv_events_config"):
        if name in ready:
            ready[name] = None  # the workers' own business
    return ready
