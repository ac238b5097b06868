"""What must hold between a request's flow, the lines it waits in and the books."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from nodeserve.errors import InvariantError
from nodeserve.ids import RequestId
from nodeserve.router.books import Books
from nodeserve.router.fair_queue import FairQueue
from nodeserve.router.request_flow import Phase, RequestFlow


class Waits(NamedTuple):
    """Where a request stands in line, and whether a decode slot is kept for it."""

    in_queue: bool
    in_decode_line: bool
    has_slot: bool


def check_waits(flow: RequestFlow, waits: Waits) -> None:
    """Check that a live request waits where its phase says, and only there.

    Raises:
        InvariantError: It waits nowhere and would hang, waits twice, or is over.
    """
    match flow.phase:
        case Phase.QUEUED:
            sound = waits == Waits(in_queue=True, in_decode_line=False, has_slot=False)
        case Phase.PREFILL:
            sound = not waits.in_queue and waits.in_decode_line != waits.has_slot
        case Phase.HANDOFF:
            sound = waits == Waits(in_queue=False, in_decode_line=True, has_slot=False)
        case Phase.DECODE:
            sound = not any(waits)
        case Phase.DONE | Phase.FAILED | Phase.ABORTED:
            sound = False
    if not sound:
        raise InvariantError(
            f"router: request {flow.request.request_id} in phase {flow.phase.value} has {waits};"
            " report this bug"
        )


def check_lines(
    flows: Mapping[RequestId, RequestFlow],
    books: Books,
    queue: Container[RequestId],
    decode_line: Container[RequestId],
) -> None:
    """Check that every live request is on the books and waits where its phase says.

    Raises:
        InvariantError: One would leak, hang or run twice.
    """
    for request_id, flow in flows.items():
        check_booked(flow, books)
        waits = Waits(
            in_queue=request_id in queue,
            in_decode_line=request_id in decode_line,
            has_slot=request_id in books.slots,
        )
        check_waits(flow, waits)


def check_tenants(flows: Mapping[RequestId, RequestFlow], queue: FairQueue) -> None:
    """Check that every listener's account counts its live requests, and no others.

    Raises:
        InvariantError: One counts others, so that its limit would hold back too many or too few.
    """
    counted = {tenant.name: tenant.running + tenant.queued for tenant in queue.snapshots()}
    alive = Counter(flow.request.listener for flow in flows.values())
    if alive != Counter({name: count for name, count in counted.items() if count}):
        raise InvariantError(
            f"router: listeners have {dict(alive)} live requests, their accounts count {counted};"
            " report this bug"
        )


def check_booked(flow: RequestFlow, books: Books) -> None:
    """Check that what a live request holds is on the books.

    Raises:
        InvariantError: Its leg or its lease is not, so that it would leak.
    """
    flow.check()
    sound = flow.leg_id is None or books.legs.get(flow.leg_id) is flow
    if flow.lease_id is not None and flow.lease_owner is not None:
        owner = books.views.get(flow.lease_owner)
        lease = None if owner is None else owner.leases.get(flow.lease_id)
        sound &= lease is not None and lease.request_id == flow.request.request_id
    if not sound:
        raise InvariantError(
            f"router: request {flow.request.request_id} in phase {flow.phase.value} has leg"
            f" {flow.leg_id} and lease {flow.lease_id} of {flow.lease_owner}, and the books do"
            " not; report this bug"
        )


def check_held(
    flows: Mapping[RequestId, RequestFlow], books: Books, aborted: Iterable[RequestFlow]
) -> None:
    """Check that every leg and lease on the books belongs to somebody.

    Raises:
        InvariantError: One does not, so that it would leak.
    """
    for flow in (*books.legs.values(), *aborted):
        check_leg(flow, flows, books)
    check_leases(flows, books)


def check_leg(flow: RequestFlow, flows: Mapping[RequestId, RequestFlow], books: Books) -> None:
    """Check that a leg belongs to a live request, or to an aborted one that may yet hand over.

    Raises:
        InvariantError: It belongs to neither, or its worker is gone.
    """
    is_live = flows.get(flow.request.request_id) is flow
    if is_live is (flow.phase is Phase.ABORTED) or flow.generation not in books.views:
        raise InvariantError(
            f"router: leg {flow.leg_id} of worker generation {flow.generation} belongs to a"
            f" request in phase {flow.phase.value}; report this bug"
        )


def check_leases(flows: Mapping[RequestId, RequestFlow], books: Books) -> None:
    """Check that every lease on the books is held by a live request.

    Raises:
        InvariantError: One is not, so nobody would release it.
    """
    for generation, view in books.views.items():
        for lease_id, lease in view.leases.items():
            flow = flows.get(lease.request_id)
            held = None if flow is None else (flow.lease_owner, flow.lease_id)
            if held != (generation, lease_id):
                raise InvariantError(
                    f"router: lease {lease_id} of worker generation {generation} is for request"
                    f" {lease.request_id}, which holds {held}; report this bug"
                )
