"""A worker process whose engine is the simulated one, run in virtual time."""

from collections import deque
from typing import TYPE_CHECKING, Final

from nodeserve.engine.simulated.core import EngineCore
from nodeserve.engine.simulated.limits import Limits
from nodeserve.engine.simulated.loop import OUTPUT_HIGH_WATER
from nodeserve.engine.simulated.tokens import Vocabulary
from nodeserve.engine.simulated.wire import FIELDS, Handoff
from nodeserve.ids import Generation
from nodeserve.perf_model.latency import Link as Bandwidth
from nodeserve.sim.faults import BLOCK_SIZE, MAX_MODEL_LEN, Plan, PlannedWorker
from nodeserve.sim.links import Link
from nodeserve.sim.process import Process
from nodeserve.sim.story import RuleBrokenError
from nodeserve.wire.codec import encode
from nodeserve.wire.control import WorkerHello, WorkerReady
from nodeserve.wire.engine_core import ADD, identity_of
from nodeserve.wire.kinds import HANDOFF, PROBE, RESUME

if TYPE_CHECKING:
    from nodeserve.sim.data_plane import SimDispatcher
    from nodeserve.sim.node import SimNode

VOCABULARY: Final = Vocabulary(128_256, ())

LOOK_UP_S: Final = 0.5
"""How often an engine that waits for a lease to end looks up; as in its loop."""

BLOCK_BYTES: Final = 1000


def limits_of(plan: Plan, worker: PlannedWorker, generation: Generation) -> Limits:
    """Return the sizes of a worker's engine."""
    return Limits(
        generation=generation,
        num_blocks=worker.num_blocks,
        block_size=BLOCK_SIZE,
        block_bytes=BLOCK_BYTES,
        max_num_seqs=worker.max_num_seqs,
        max_num_batched_tokens=32,
        link=Bandwidth(setup_s=0.002, bytes_per_s=1e6),
        host_link=Bandwidth(setup_s=0.001, bytes_per_s=1e6),
        speedup=1.0,
        lease_ttl_s=plan.lease_ttl_s,
        lease_slots=plan.lease_slots,
    )


class SimWorker(Process):
    """One worker process.

    Attributes:
        engine: None until it has started.
        hangs: Whether it stands still: it neither reads, nor steps, nor says anything.
        mute: Whether its queue is full, so that nobody can send to it.
        slowness: What its step times are multiplied with.
    """

    def __init__(self, node: "SimNode", planned: PlannedWorker, generation: Generation) -> None:
        super().__init__(node, planned.name, generation)
        self.planned = planned
        self.engine: EngineCore | None = None
        self.hangs = False
        self.mute = False
        self.slowness = 1.0
        self.feeds: list[Link[list[bytes]]] = []
        self._inbox: deque[list[bytes]] = deque()
        self._peer: SimDispatcher | None = None
        self._to_peer: Link[list[bytes]] | None = None
        self._from_peer: Link[list[bytes]] | None = None
        self._said_hello = False
        self._is_stepping = False
        self._step_is_over = False
        self._turn_is_due = False
        node.tell_supervisor(self, WorkerHello(name=self.name, generation=generation, pid=1))
        node.queue.after(node.draw.uniform(0.02, 0.1), self._load)

    # ------------------------------------------------------------------------- starting

    def _load(self) -> None:
        if not self.alive:
            return
        if self.hangs:
            self.node.queue.after(LOOK_UP_S, self._load)
            return
        limits = limits_of(self.node.plan, self.planned, self.generation)
        self.engine = EngineCore(limits, VOCABULARY, max_model_len=MAX_MODEL_LEN)
        self.node.queue.after(LOOK_UP_S, self._look_up)
        ready = WorkerReady(
            name=self.name,
            generation=self.generation,
            fields=FIELDS,
            ready=encode(self._ready_map(limits)),
            block_size=BLOCK_SIZE,
            num_gpu_blocks=limits.num_blocks,
            kv_block_bytes=BLOCK_BYTES,
            max_model_len=MAX_MODEL_LEN,
            kv_events_endpoint=f"kv-{self.generation}",
            features=(HANDOFF, PROBE, RESUME),
        )
        self.node.tell_supervisor(self, ready)
        self.connect_soon()

    @staticmethod
    def _ready_map(limits: Limits) -> dict[str, object]:
        return {
            "max_model_len": MAX_MODEL_LEN,
            "num_gpu_blocks": limits.num_blocks,
            "block_size": limits.block_size,
            "max_num_seqs": limits.max_num_seqs,
            "kv_cache_size_tokens": limits.num_blocks * limits.block_size,
        }

    def connect_soon(self) -> None:
        """Look for the dispatcher's sockets, as ZeroMQ does now and then."""
        self.node.queue.after(self.node.draw.uniform(0.0, 0.1), self._connect)

    def _connect(self) -> None:
        peer = self.node.dispatcher
        if not self.alive or self.engine is None or peer is None or self._peer is peer:
            return
        self._peer = peer
        self._from_peer = Link(self.node.queue, peer.under_way_s, self._on_frames)
        self._to_peer = Link(self.node.queue, self.under_way_s, peer.ports.on_output)
        peer.ports.engine_connected(identity_of(self.generation), self)
        if not self._said_hello:
            self._said_hello = True
            hello = Link(self.node.queue, self.under_way_s, peer.ports.on_engine)
            hello.send([identity_of(self.generation), encode({"ready": 1})])
        self.wake()

    def peer_died(self) -> None:
        """Notice that the dispatcher is gone, with all that was under way."""
        for link in (self._from_peer, self._to_peer):
            if link is not None:
                link.cut()
        self._peer = self._from_peer = self._to_peer = None

    # ------------------------------------------------------------------------- messages

    def send(self, frames: list[bytes]) -> None:
        """Take what the dispatcher sends, some time later."""
        if self._from_peer is None:
            return
        for _ in range(1 if frames[0] == ADD else self.times(may_be_lost=True)):
            self._from_peer.send(list(frames))

    def _on_frames(self, frames: list[bytes]) -> None:
        if self.alive:
            self._inbox.append(frames)
            self.wake()

    def _read(self, engine: EngineCore) -> None:
        while self._inbox:
            engine.take(self._inbox.popleft(), self.node.queue.now_s())
            self.node.touched(self)

    # ---------------------------------------------------------------------------- steps

    def wake(self) -> None:
        """Let the engine's loop take a turn if it rests."""
        if not self._turn_is_due:
            self._turn_is_due = True
            self.node.queue.after(0.0, self._turn)

    def thaw(self) -> None:
        """Go on where it stood still."""
        self.hangs = False
        self.wake()

    def _look_up(self) -> None:
        if self.alive:
            self.wake()
            self.node.queue.after(LOOK_UP_S, self._look_up)

    def _turn(self) -> None:
        self._turn_is_due = False
        engine = self.engine
        if not self.alive or self.hangs or engine is None:
            return
        self._read(engine)
        self._flush(engine)
        if self._is_stepping:
            if not self._step_is_over:
                return
            self._is_stepping = self._step_is_over = False
            engine.finish_step(self.node.queue.now_s())
            self.node.touched(self)
            self._flush(engine)
        if len(engine.outbox) > OUTPUT_HIGH_WATER:
            return  # until its peer takes what it has said
        now_s = self.node.queue.now_s()
        if engine.scheduler.plan(now_s):
            self._is_stepping = True
            took_s = self.node.plan.step_s * self.node.draw.uniform(0.7, 1.3) * self.slowness
            self.node.queue.after(took_s, self._end_step)
        else:
            engine.say_what_is_free(now_s)
            load_s = engine.scheduler.handoffs.next_load_s
            if load_s is not None:
                self.node.queue.at(load_s, self.wake)
        self.node.touched(self)
        self._flush(engine)

    def _end_step(self) -> None:
        self._step_is_over = True
        self.wake()

    def _flush(self, engine: EngineCore) -> None:
        events = engine.take_kv_events(0.0)
        if events is not None and self.times(may_be_lost=True):
            for feed in self.feeds:
                feed.send(events)
        peer, link = self._peer, self._to_peer
        while engine.outbox and peer is not None and link is not None and peer.ports.takes_outputs:
            link.send([engine.outbox.popleft()])

    # ----------------------------------------------------------------------------- end

    def ended(self) -> None:
        """Let the dispatcher notice, a moment later, that nobody listens."""
        if self._from_peer is not None:
            self._from_peer.cut()
        peer = self._peer
        if peer is not None:
            identity = identity_of(self.generation)
            delay_s = self.node.draw.uniform(0.0, 0.005)
            self.node.queue.after(delay_s, lambda: peer.ports.engine_gone(identity))

    def check(self) -> None:
        """Raise InvariantError unless its engine adds up and what it pulls is leased."""
        if self.engine is None:
            return
        self.engine.scheduler.check()
        for sequence in self.engine.scheduler.handoffs.loading:
            if sequence.handoff is not None and self.node.is_wanted(sequence.request_id):
                self._check_pull(sequence.handoff)

    def _check_pull(self, handoff: Handoff) -> None:
        """A lease holds as long as a leg pulls, unless its owner has died or ended it by itself."""
        owner = self.node.worker_of(handoff.engine)
        if owner is None or owner.engine is None:
            return
        handoffs = owner.engine.scheduler.handoffs
        if not handoffs.holds(handoff.lease_id) and not handoffs.stats()["expired"]:
            text = f"{self} pulls under lease {handoff.lease_id} of {owner}, which was released"
            raise RuleBrokenError("what is pulled is leased", text)
