"""What the ledger is told of requests: who they belong to, where they ran, how they ended."""

from collections.abc import Callable
from functools import partial
from typing import Final

from nodeserve.bus.ledger_client import LedgerClient
from nodeserve.clock import Clock
from nodeserve.dispatcher.records import ClientRequest, Leg
from nodeserve.router.messages import LegKind
from nodeserve.wire.accounting import (
    EndedLeg,
    EndedRequest,
    RequestsNoted,
    StartedRequest,
    UseReported,
)

NOTE_EVERY_S: Final = 0.25
"""How long what has happened to requests may wait to be noted together."""

GREET_EVERY_S: Final = 5.0
"""A dispatcher that has nothing to note says so as often: so a new ledger hears of it."""

MAX_NOTED: Final = 2000
"""Requests in one message, which stays below a megabyte."""


class Unbooked:
    """For a node that keeps no accounts."""

    def leg_began(self, leg: Leg) -> None:
        """Take note of a request's next leg, before what earlier ones left is forgotten."""

    def handoff_failed(self, request: ClientRequest) -> None:
        """Take note that a decode worker has computed the prompt again."""

    def ended(self, request: ClientRequest, finish: str) -> None:
        """Take note of a request's end; ``finish`` is a name of vLLM's FinishReason."""

    def tick(self) -> list[UseReported]:
        """Say what has come together, a few times a second; return what was reported."""
        return []

    def close(self) -> None:
        """Say what is left and close the connection."""


class Bookings(Unbooked):
    """Notes requests from their first leg on. Requests that never had one have used nothing."""

    def __init__(
        self,
        client: LedgerClient,
        clock: Clock,
        unix_now_s: Callable[[], float],
        *,
        generation: int,
        model: str,
    ) -> None:
        """Say nothing yet. ``model`` is what clients call it."""
        self._client = client
        self._clock = clock
        self._unix_now_s = unix_now_s
        self._generation = generation
        self._model = model
        self._started: dict[str, StartedRequest] = {}
        self._ended: list[EndedRequest] = []
        self._noted_s: float | None = None

    def leg_began(self, leg: Leg) -> None:
        """Take note of a request's next leg, before what earlier ones left is forgotten."""
        request = leg.request
        if request.legs:
            if leg.kind is not LegKind.DECODE:
                request.scrap_tokens += _computed(request)
            for before in request.legs:
                kept = leg.kind is LegKind.DECODE and before.kind is LegKind.PREFILL
                before.is_scrap |= not kept
        else:
            self._started[request.request_id] = StartedRequest(
                request_id=request.request_id,
                wire_id=request.wire_id,
                listener=request.gateway.listener,
                model=self._model,
                arrived_unix_s=self._arrived_unix_s(request),
            )
        request.legs.append(leg)

    def handoff_failed(self, request: ClientRequest) -> None:
        """Take note that a decode worker has computed the prompt again."""
        for leg in request.legs:
            if leg.kind is LegKind.PREFILL and not leg.is_scrap:
                leg.is_scrap = True
                request.scrap_tokens += request.prompt_tokens - request.cached_tokens

    def ended(self, request: ClientRequest, finish: str) -> None:
        """Take note of a request's end; ``finish`` is a name of vLLM's FinishReason.

        A gateway aborts a request at whose end it has seen a stop string, and nobody but it knows
        the difference: of those that have stop strings an abort behind an answer is taken for it.
        """
        if not request.legs:
            return
        if finish == "abort" and request.has_stop_strings and request.output_tokens:
            finish = "stop"
        scrap_tokens = request.scrap_tokens
        is_scrap = finish in {"abort", "error"}
        if is_scrap:
            scrap_tokens += _computed(request)
        self._started.pop(request.request_id, None)
        self._ended.append(
            EndedRequest(
                request_id=request.request_id,
                wire_id=request.wire_id,
                listener=request.gateway.listener,
                model=self._model,
                outcome=finish,
                arrived_unix_s=self._arrived_unix_s(request),
                ended_unix_s=self._unix_now_s(),
                prompt_tokens=request.prompt_tokens,
                cached_tokens=request.cached_tokens,
                output_tokens=request.output_tokens,
                scrap_tokens=scrap_tokens,
                resumed=request.resumed,
                legs=tuple(
                    EndedLeg(leg.leg_id, leg.worker.name, leg.role, is_scrap or leg.is_scrap)
                    for leg in request.legs
                ),
            )
        )

    def tick(self) -> list[UseReported]:
        """Say what has come together, a few times a second; return what was reported."""
        now_s = self._clock.now_s()
        waited_s = GREET_EVERY_S if self._noted_s is None else now_s - self._noted_s
        some = bool(self._started or self._ended)
        if waited_s >= (NOTE_EVERY_S if some else GREET_EVERY_S):
            self._noted_s = now_s
            self._note()
        return self._client.turn(now_s)

    def close(self) -> None:
        """Say what is left and close the connection."""
        if self._started or self._ended:
            self._note()
        self._client.turn(self._clock.now_s())
        self._client.close()

    def _note(self) -> None:
        started, self._started = list(self._started.values()), {}
        ended, self._ended = self._ended, []
        for first in range(0, max(len(started), len(ended), 1), MAX_NOTED):
            some_started = tuple(started[first : first + MAX_NOTED])
            some_ended = tuple(ended[first : first + MAX_NOTED])
            self._client.say(partial(self._noted, some_started, some_ended))

    def _noted(
        self, started: tuple[StartedRequest, ...], ended: tuple[EndedRequest, ...], seq: int
    ) -> RequestsNoted:
        return RequestsNoted(generation=self._generation, seq=seq, started=started, ended=ended)

    def _arrived_unix_s(self, request: ClientRequest) -> float:
        return self._unix_now_s() - (self._clock.now_s() - request.arrived_s)


def _computed(request: ClientRequest) -> int:
    """Return the tokens that the last leg is known to have computed or built upon.

    A leg that had not answered has perhaps computed a part of the prompt; nobody knows how much.
    """
    last = request.legs[-1]
    prefilled = request.handoff is not None and last.kind is not LegKind.WHOLE
    if not (last.started or prefilled):
        return 0
    return request.prompt_tokens - request.cached_tokens + request.output_tokens
