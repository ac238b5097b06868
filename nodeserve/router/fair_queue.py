"""The queue of requests that wait to start: fair between listeners, in modelled GPU time.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), with requests charged by what
they take of the GPUs, as in Sheng et al., Fairness in Serving LLMs, OSDI 2024: a listener's
virtual time grows by the GPU seconds of what it starts, divided by its weight, and the listener
that is behind starts next. One that had nothing to start is not owed the time it let pass. The
output is charged as long as the listener's requests are of late, and corrected at the end.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from nodeserve.errors import InvariantError
from nodeserve.ids import RequestId
from nodeserve.perf_model.request_cost import RequestCost
from nodeserve.router.admission import MAX_OVERTAKEN, MAX_SKIPPED
from nodeserve.router.messages import ListenerChanged
from nodeserve.router.request_flow import RequestFlow
from nodeserve.router.tenant import Band, Tenant, TenantSnapshot, Waiting

_Turn = tuple[int, bool, float, int]
"""Band, whether to be paid for, start tag, arrival: who is offered room first."""

_NEVER: Final = float("inf")


class FairQueue:
    """Requests that wait for room, by band, then by their listeners' virtual time.

    Within a listener they go by priority and by arrival; with one listener that is all.

    A request that does not fit is passed by others: room would stand empty while it waits. It
    is passed at most `MAX_OVERTAKEN` times, then it blocks all who come after it until it
    fits, which it does when enough of what runs has finished. So nobody waits for ever behind
    others of its band. One that its listener's own limit holds back is passed by everybody.
    """

    def __init__(self, cost: RequestCost) -> None:
        self._cost = cost
        self._tenants: dict[str, Tenant] = {}
        self._waiting: dict[RequestId, Tenant] = {}
        self._bands: dict[int, Band] = {}
        self._num_started = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    # ----------------------------------------------------------------------- listeners

    def change_listener(self, settings: ListenerChanged) -> None:
        """Take in what a listener's requests may take from here on."""
        tenant = self._tenants.get(settings.listener)
        band = self._bands.setdefault(settings.priority, Band())
        if tenant is None:
            self._tenants[settings.listener] = Tenant(settings, band)
            return
        if tenant.band is not band:
            tenant.band = band
            tenant.virtual_s = band.virtual_s
        tenant.settings = settings

    def tenant_of(self, flow: RequestFlow) -> Tenant:
        """Return the account of a request's listener; an unknown one gets the defaults."""
        name = flow.request.listener
        tenant = self._tenants.get(name)
        if tenant is None:
            self.change_listener(ListenerChanged(name))
            tenant = self._tenants[name]
        return tenant

    def longest(self) -> Tenant:
        """Return the listener of which most requests wait."""
        return max(self._tenants.values(), key=lambda tenant: len(tenant.line))

    def snapshots(self) -> tuple[TenantSnapshot, ...]:
        """Return every listener's account, in the order in which they came."""
        return tuple(tenant.snapshot() for tenant in self._tenants.values())

    # -------------------------------------------------------------------------- waiting

    def push(self, flow: RequestFlow, *, now_s: float) -> int:
        """Let a request wait; return how many of its own listener are before it."""
        tenant = self.tenant_of(flow)
        tenant.catch_up()
        self._waiting[flow.request.request_id] = tenant
        return tenant.push(flow, self._guess_s(flow, tenant), now_s=now_s)

    def discard(self, request_id: RequestId) -> None:
        """Take a request out; one that does not wait is ignored."""
        tenant = self._waiting.pop(request_id, None)
        if tenant is not None:
            tenant.discard(request_id)

    def walk(self, try_start: Callable[[RequestId, int], bool]) -> None:
        """Offer the room there is to those who wait, in order.

        Args:
            try_start: Starts a request, given how many before it were passed, and returns
                whether it did. It must not touch this queue, except by `charge`.
        """
        if not self._waiting:
            return
        # Each listener's next request: its turn, its place in line, what those passed would cost.
        turns = [
            (_turn(tenant, 0, 0.0), 0, 0.0, tenant)
            for tenant in self._tenants.values()
            if tenant.line
        ]
        heapify(turns)
        passed: list[Waiting] = []
        while turns:
            _, place, ahead_s, tenant = heappop(turns)
            if not tenant.may_start:
                continue
            waiting = tenant.line[place]
            if try_start(waiting.request_id, len(passed)):
                self.discard(waiting.request_id)
                for other in passed:
                    other.overtaken += 1
            else:
                passed.append(waiting)
                if waiting.overtaken >= MAX_OVERTAKEN:
                    return
                place += 1
                ahead_s += waiting.cost_s
            if place < len(tenant.line) and place <= MAX_SKIPPED:
                heappush(turns, (_turn(tenant, place, ahead_s), place, ahead_s, tenant))

    def request_ids(self) -> list[RequestId]:
        """Return who waits: listener by listener, first one first."""
        return [waiting.request_id for t in self._tenants.values() for waiting in t.line]

    def next_deadline_s(self) -> float | None:
        """Return when somebody will have waited too long; None when nobody can."""
        deadline_s = min((t.deadline_s or _NEVER for t in self._tenants.values()), default=_NEVER)
        return None if deadline_s == _NEVER else deadline_s

    def expire(self, *, now_s: float) -> list[tuple[RequestId, Tenant]]:
        """Take out those who have waited too long, and return them."""
        expired = []
        for tenant in self._tenants.values():
            while (deadline_s := tenant.deadline_s) is not None and deadline_s <= now_s:
                request_id = next(iter(tenant.since_s))
                self.discard(request_id)
                tenant.expired += 1
                expired.append((request_id, tenant))
        return expired

    # -------------------------------------------------------------------------- charging

    def charge(self, flow: RequestFlow, uncached_tokens: int) -> None:
        """Book that a request starts; the time that it starts again is not charged twice."""
        if flow.paid_s is not None:
            return
        tenant = self.tenant_of(flow)
        tenant.catch_up()
        tenant.band.virtual_s = max(tenant.band.virtual_s, tenant.virtual_s)
        self._num_started += 1
        flow.turn = self._num_started
        flow.guess_tokens = _guess_tokens(flow, tenant)
        prompt_s = uncached_tokens * self._cost.prompt_token_s
        flow.paid_s = prompt_s + flow.guess_tokens * self._cost.output_token_s
        tenant.charge(flow.paid_s)

    def settle(self, flow: RequestFlow, output_tokens: int) -> None:
        """Correct what a request was charged, now that its output's length is known."""
        if flow.paid_s is None:
            return
        tenant = self.tenant_of(flow)
        tenant.charge((output_tokens - flow.guess_tokens) * self._cost.output_token_s)
        tenant.learn(output_tokens)

    def _guess_s(self, flow: RequestFlow, tenant: Tenant) -> float:
        cost = self._cost
        output_s = _guess_tokens(flow, tenant) * cost.output_token_s
        return flow.request.prompt_tokens * cost.prompt_token_s + output_s

    def check(self) -> None:
        """Check that every listener's line and the table of all who wait agree.

        Raises:
            InvariantError: They do not: somebody would wait for ever.
        """
        waiting: dict[RequestId, Tenant] = {}
        for tenant in self._tenants.values():
            tenant.check()
            waiting.update((one.request_id, tenant) for one in tenant.line)
        if waiting != self._waiting:
            raise InvariantError(
                f"router: {len(waiting)} requests stand in line and {len(self._waiting)} are known"
                " to wait, not the same ones; report this bug"
            )


def _turn(tenant: Tenant, place: int, ahead_s: float) -> _Turn:
    settings = tenant.settings
    is_new, _, arrival = tenant.line[place].order
    start_tag_s = tenant.virtual_s + ahead_s / settings.weight if is_new else 0.0
    return settings.priority, is_new, start_tag_s, arrival


def _guess_tokens(flow: RequestFlow, tenant: Tenant) -> float:
    return min(flow.request.max_tokens, tenant.guess_tokens)
