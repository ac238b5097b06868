"""A router against a fake node in which anything may happen at any moment."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nodeserve.ids import BlockHash, Generation, LeaseId, LegId, RequestId
from nodeserve.router.messages import (
    AbortLeg,
    AnswersCounted,
    BlocksRemoved,
    BlocksStored,
    Command,
    Event,
    FailRequest,
    LegFinished,
    LegKind,
    LegStarted,
    ListenerChanged,
    LoadReported,
    NodeDraining,
    PrefillFinished,
    ReleaseLease,
    ReportDrained,
    ReportNodeDrained,
    RequestAborted,
    RequestArrived,
    RoleChanged,
    StartLeg,
    TimeElapsed,
    WakeAt,
    WorkerAttached,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.router.router import Router, RouterConfig
from nodeserve.wire.kinds import Role

BLOCK = 4
PICK = st.integers(0, 1 << 30)
BLOCKS = st.integers(1, 12)
LISTENERS = ("chat", "batch", "urgent")
MAX_RUNNING, MAX_QUEUED = 2, 2
TIMEOUT_S = 5.0


def once_in(number: int) -> st.SearchStrategy[bool]:
    """Draw True about once in ``number``; small integers would be drawn more often."""
    return st.integers(0, 10 * number).map(lambda drawn: 5 * number <= drawn < 5 * number + 10)


class Leg:
    """A leg as its engine sees it."""

    def __init__(self, start: StartLeg) -> None:
        self.start = start
        self.started = False


class FakeWorker:
    """An engine: it knows its legs, aborted or not, and the leases it granted."""

    def __init__(self, event: WorkerAttached) -> None:
        self.event = event
        self.legs: dict[LegId, Leg] = {}
        self.handoffs_under_way: list[LegId] = []
        self.leases: set[LeaseId] = set()
        self.draining = False
        self.drained = False


class NodeMachine(RuleBasedStateMachine):
    """Drives one router and carries out what it commands."""

    @initialize(
        local=st.sampled_from([0, 0, 8]),
        queued=st.sampled_from([3, 1000, 1000]),
        sizes=st.tuples(*[st.integers(8, 30)] * 4),
    )
    def start(self, local: int, queued: int, sizes: tuple[int, ...]) -> None:
        config = RouterConfig(local_prefill_tokens=local, max_queued_requests=queued)
        self.router = Router(config)
        self.workers: dict[Generation, FakeWorker] = {}
        self.generations = 0
        self.requests = 0
        self.lease_ids = 0
        self.live: set[RequestId] = set()
        self.ended: set[RequestId] = set()
        self.leg_ids: set[LegId] = set()
        self.draining = False
        self.node_drained = False
        self.now_s = 0.0
        self.wakes_at_s: float | None = None
        self.tell(ListenerChanged("batch", max_running=MAX_RUNNING, queue_timeout_s=TIMEOUT_S))
        self.tell(ListenerChanged("urgent", priority=-1, max_queued=MAX_QUEUED))
        for role, blocks in zip((*Role, Role.PREFILL), sizes, strict=True):
            if blocks % 4 or role is not Role.AGGREGATED:
                self.attach(role, blocks, 4)

    # ------------------------------------------------------------------ the node's side

    def tell(self, event: Event) -> None:
        for command in self.router.handle(event, now_s=self.now_s):
            self.carry_out(command)

    def carry_out(self, command: Command) -> None:
        match command:
            case StartLeg():
                self.start_leg(command)
            case AbortLeg():
                leg = self.workers[command.generation].legs.pop(command.leg_id)
                if leg.start.kind is LegKind.PREFILL:
                    self.workers[command.generation].handoffs_under_way.append(command.leg_id)
            case ReleaseLease():
                # Never granted, released twice, or its worker is dead: KeyError.
                self.workers[command.generation].leases.remove(command.lease_id)
            case FailRequest():
                self.end(command.request_id)
            case ReportDrained():
                worker = self.workers[command.generation]
                assert worker.draining
                assert not any((worker.drained, worker.legs, worker.leases))
                worker.drained = True
            case ReportNodeDrained():
                assert self.draining
                assert not any((self.node_drained, self.live))
                self.node_drained = True
            case WakeAt():
                assert command.at_s > self.now_s
                self.wakes_at_s = command.at_s

    def start_leg(self, command: StartLeg) -> None:
        worker = self.workers[command.generation]
        assert not worker.draining
        assert command.leg_id not in self.leg_ids
        assert command.request_id in self.live
        running = [leg for w in self.workers.values() for leg in w.legs.values()]
        assert all(leg.start.request_id != command.request_id for leg in running)
        if command.kind is LegKind.DECODE:
            owners = [g for g, w in self.workers.items() if command.lease_id in w.leases]
            assert owners
            assert command.generation not in owners
        else:
            assert command.lease_id is None
        self.leg_ids.add(command.leg_id)
        worker.legs[command.leg_id] = Leg(command)

    def end(self, request_id: RequestId) -> None:
        self.live.remove(request_id)
        assert request_id not in self.ended
        self.ended.add(request_id)

    def some_worker(self, pick: int) -> FakeWorker:
        return list(self.workers.values())[pick % len(self.workers)]

    def some_leg(self, pick: int) -> tuple[FakeWorker, Leg] | None:
        legs = [(w, leg) for w in self.workers.values() for leg in w.legs.values()]
        return legs[pick % len(legs)] if legs else None

    def hashes(self, family: int, blocks: int) -> tuple[BlockHash, ...]:
        return tuple(BlockHash(family * 100 + number) for number in range(blocks))

    def grant(self, worker: FakeWorker, leg_id: LegId) -> None:
        self.lease_ids += 1
        lease_id = LeaseId(self.lease_ids)
        worker.leases.add(lease_id)
        self.tell(PrefillFinished(leg_id, lease_id))

    # --------------------------------------------------------------------------- events

    @rule(role=st.sampled_from(Role), blocks=st.integers(4, 30))
    def start_worker(self, role: Role, blocks: int) -> None:
        if len(self.workers) < 5:
            self.attach(role, blocks, 3)

    def attach(self, role: Role, blocks: int, seqs: int) -> None:
        self.generations += 1
        generation = Generation(self.generations)
        event = WorkerAttached(generation, role, blocks, BLOCK, seqs)
        self.workers[generation] = FakeWorker(event)
        self.tell(event)

    @rule(
        sizes=st.lists(BLOCKS, min_size=1, max_size=6),
        output=st.integers(1, 40),
        family=st.integers(0, 2),
        whole=once_in(8),
        priority=st.integers(0, 1),
    )
    def arrive(
        self, sizes: list[int], output: int, family: int, whole: bool, priority: int
    ) -> None:
        for blocks in sizes:
            self.requests += 1
            request_id = RequestId(f"r{self.requests}")
            self.live.add(request_id)
            hashes = self.hashes(family, blocks)
            tokens = blocks * BLOCK + 1
            restorable = self.requests % 2 == 0
            listener = LISTENERS[self.requests % 3]
            self.tell(
                RequestArrived(
                    request_id, tokens, output, hashes, whole, priority, restorable, listener
                )
            )

    @rule(pick=PICK)
    def abort(self, pick: int) -> None:
        if self.live:
            found = self.some_leg(pick) if pick % 2 else None
            waiting = sorted(self.live)[pick % len(self.live)]
            request_id = waiting if found is None else found[1].start.request_id
            self.live.remove(request_id)
            self.ended.add(request_id)
            self.tell(RequestAborted(request_id))

    @rule(picks=st.lists(PICK, min_size=1, max_size=3))
    def steps(self, picks: list[int]) -> None:
        for pick in picks:
            self.step(pick)

    def step(self, pick: int) -> None:
        found = self.some_leg(pick)
        if found is None:
            return
        worker, leg = found
        leg_id = leg.start.leg_id
        if leg.start.kind is LegKind.PREFILL:
            del worker.legs[leg_id]
            self.grant(worker, leg_id)
        elif not leg.started:
            leg.started = True
            self.tell(LegStarted(leg_id))
        else:
            self.finish(worker, leg)

    @rule(pick=PICK, now=once_in(5))
    def finish_early(self, pick: int, now: bool) -> None:
        found = self.some_leg(pick)
        if found is not None and now:
            self.finish(*found)

    def finish(self, worker: FakeWorker, leg: Leg) -> None:
        del worker.legs[leg.start.leg_id]
        self.end(leg.start.request_id)
        self.tell(LegFinished(leg.start.leg_id))

    @precondition(lambda self: any(w.handoffs_under_way for w in self.workers.values()))
    @rule(pick=PICK, hands_over=st.booleans())
    def late_handoff_arrives(self, pick: int, hands_over: bool) -> None:
        late = [(w, leg) for w in self.workers.values() for leg in w.handoffs_under_way]
        worker, leg_id = late[pick % len(late)]
        worker.handoffs_under_way.remove(leg_id)
        if not hands_over:
            self.tell(LegFinished(leg_id))
            return
        self.grant(worker, leg_id)
        assert LeaseId(self.lease_ids) not in worker.leases

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, now=once_in(2))
    def lose(self, pick: int, now: bool) -> None:
        if now:
            worker = self.some_worker(pick)
            del self.workers[worker.event.generation]
            self.tell(WorkerLost(worker.event.generation))

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, now=once_in(3))
    def drain(self, pick: int, now: bool) -> None:
        if now:
            worker = self.some_worker(pick)
            worker.draining = True
            self.tell(WorkerDraining(worker.event.generation))

    @rule(sent=st.integers(1, 40))
    def count_answers(self, sent: int) -> None:
        legs = [leg for worker in self.workers.values() for leg in worker.legs]
        self.tell(AnswersCounted(dict.fromkeys(legs, sent)))

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, role=st.sampled_from(Role))
    def change_role(self, pick: int, role: Role) -> None:
        self.tell(RoleChanged(self.some_worker(pick).event.generation, role))

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, waiting=st.integers(0, 2), usage=st.sampled_from([0.0, 0.5, 1.0]))
    def report_load(self, pick: int, waiting: int, usage: float) -> None:
        worker = self.some_worker(pick)
        self.tell(LoadReported(worker.event.generation, len(worker.legs), waiting, usage))

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, family=st.integers(0, 2), blocks=st.integers(0, 12), stored=st.booleans())
    def cache(self, pick: int, family: int, blocks: int, stored: bool) -> None:
        generation = self.some_worker(pick).event.generation
        hashes = self.hashes(family, blocks)
        self.tell(BlocksStored(generation, hashes) if stored else BlocksRemoved(generation, hashes))

    @rule(now=once_in(25))
    def drain_node(self, now: bool) -> None:
        if now:
            self.draining = True
            self.tell(NodeDraining())

    @rule(pick=PICK)
    def stale_events_arrive(self, pick: int) -> None:
        if self.ended:
            request_id = sorted(self.ended)[pick % len(self.ended)]
            running = {leg for w in self.workers.values() for leg in w.handoffs_under_way}
            leg_id = LegId(f"{request_id}.1")
            before = self.router.views()
            self.tell(RequestAborted(request_id))
            self.tell(LegStarted(leg_id))
            if leg_id not in running:
                self.tell(LegFinished(leg_id))
            assert self.router.views() == before
        self.tell(TimeElapsed())

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        if self.wakes_at_s is not None and self.wakes_at_s <= self.now_s:
            self.wakes_at_s = None
            self.tell(TimeElapsed())

    # ----------------------------------------------------------------------- what holds

    @invariant()
    def the_router_agrees_with_itself_and_with_the_node(self) -> None:
        self.router.check()
        assert self.router.queued_count + self.router.running_count == len(self.live)
        for view in self.router.views():
            worker = self.workers[view.generation]
            assert view.prefill_legs + view.decode_legs + view.whole_legs == len(worker.legs)
            assert view.leases == len(worker.leases)
            assert not (view.draining and view.decode_slots)

    @invariant()
    def listeners_keep_to_their_limits(self) -> None:
        queue = self.router._queue
        tenants = {tenant.name: tenant for tenant in self.router.tenants()}
        assert tenants["batch"].running <= MAX_RUNNING
        assert len(queue._tenants["urgent"].since_s) <= MAX_QUEUED
        deadline_s = queue.next_deadline_s()
        assert deadline_s is None or self.wakes_at_s is not None
        assert deadline_s is None or self.now_s < deadline_s

    @invariant()
    def nobody_waits_beside_an_idle_node(self) -> None:
        open_ = [worker for worker in self.workers.values() if not worker.draining]
        if open_ and self.live:
            assert any(worker.legs for worker in self.workers.values())

    def teardown(self) -> None:
        if not hasattr(self, "router"):
            return
        for worker in self.workers.values():
            worker.draining = True
            self.tell(WorkerDraining(worker.event.generation))
        self.attach_healthy_fleet()
        steps = 0
        while self.live:
            steps += 1
            assert steps < 10_000, "a request hangs"
            self.step(steps)
        assert self.router.running_count == self.router.queued_count == 0
        for view in self.router.views():
            assert view.reserved_blocks == view.queued_prefill_tokens == 0
            assert self.workers[view.generation].drained == view.draining
        self.router.check()

    def attach_healthy_fleet(self) -> None:
        for role in Role:
            self.attach(role, 8, 2)


NodeMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, derandomize=True
)
TestNode = NodeMachine.TestCase
