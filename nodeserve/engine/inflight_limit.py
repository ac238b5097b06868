"""Turn requests away over HTTP before they are taken, while a listener has enough in flight."""

import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

from nodeserve.clock import Clock
from nodeserve.engine.shared_counts import SharedCounts
from nodeserve.wire.spawn import InflightLimitSpec

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FREE_PATHS: Final = frozenset({"/tokenize", "/detokenize", "/ping"})
"""What is posted and takes nothing of the node. Whatever is not posted is free as well: health,
metrics, models."""

MAX_RETRY_AFTER_S: Final = 60
"""Clients of OpenAI's libraries heed no longer one."""

_NEW_WEIGHT: Final = 1 / 8


class InflightLimit:
    """How many requests a listener's gateways may have in flight together."""

    def __init__(self, max_requests: int, counts: SharedCounts, clock: Clock) -> None:
        self.max_requests = max_requests
        self._counts = counts
        self._clock = clock
        self._mean_s = 0.0

    def try_begin(self) -> float | None:
        """Count a request in and return when it began; None where it must be turned away."""
        if self._counts.in_flight >= self.max_requests:
            self._counts.turn_away()
            return None
        self._counts.begin()
        return self._clock.now_s()

    def end(self, begun_s: float) -> None:
        """Count a request out."""
        self._counts.end()
        self._mean_s += (self._clock.now_s() - begun_s - self._mean_s) * _NEW_WEIGHT

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which one of those in flight should be over, at least 1."""
        wait_s = self._mean_s / self.max_requests
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(wait_s)))


def inflight_limit(spec: InflightLimitSpec, clock: Clock) -> InflightLimit:
    """Return a gateway's part in its listener's limit, with nothing of its own in flight."""
    counts = SharedCounts(Path(spec.counts_path), spec.place, spec.num_places)
    return InflightLimit(spec.max_requests, counts, clock)


class LimitedApp:
    """An ASGI application that answers 429 in front of another one."""

    def __init__(self, app: App, limit: InflightLimit) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or turn it away unread."""
        posted = scope["type"] == "http" and scope["method"] == "POST"
        if not posted or scope["path"] in FREE_PATHS:
            await self._app(scope, receive, send)
            return
        begun_s = self._limit.try_begin()
        if begun_s is None:
            await self._turn_away(send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._limit.end(begun_s)

    async def _turn_away(self, send: Send) -> None:
        body = _body(self._limit.max_requests)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(self._limit.retry_after_s).encode()),
        ]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _body(max_requests: int) -> bytes:
    message = (
        f"this listener has {max_requests} requests in flight already, no more may be; try again"
        " later"
    )
    error = {
        "message": message,
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    return json.dumps({"error": error}).encode()
