"""The names and the small talk that the tests of the router share."""

from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.router.messages import RequestArrived, WorkerAttached
from nodeserve.wire.kinds import Role

P, D, D2, A = Generation(1), Generation(2), Generation(3), Generation(4)
R = RequestId("r1")
LEG1, LEG2, LEG3 = LegId("r1.1"), LegId("r1.2"), LegId("r1.3")
LEASE = LeaseId(9)
BLOCK = 16


def attached(generation: Generation, role: Role, *, num_blocks: int = 1000) -> WorkerAttached:
    return WorkerAttached(generation, role, num_blocks, BLOCK, max_num_seqs=64)


def arrived(
    name: str = "r1", *, blocks: int = 10, priority: int = 0, listener: str = ""
) -> RequestArrived:
    """Make a request that takes ``blocks`` in a prefill leg and one more in a decode leg."""
    tokens = blocks * BLOCK
    return RequestArrived(RequestId(name), tokens, BLOCK, priority=priority, listener=listener)


def zero(talk) -> bool:
    return talk.router.queued_count == talk.router.running_count == 0 and all(
        view.reserved_blocks == view.queued_prefill_tokens == view.leases == view.decode_slots == 0
        and view.prefill_legs == view.decode_legs == view.whole_legs == 0
        for view in talk.router.views()
    )


def snapshot(talk, generation):
    return next(view for view in talk.router.views() if view.generation == generation)
