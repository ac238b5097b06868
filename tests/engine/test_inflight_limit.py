"""Claims about what is turned away, what is free, and what a client is told."""

import asyncio
import json

import pytest

from nodeserve.clock import ManualClock
from nodeserve.engine.inflight_limit import MAX_RETRY_AFTER_S, LimitedApp, inflight_limit
from nodeserve.engine.shared_counts import num_turned_away
from nodeserve.wire.spawn import InflightLimitSpec


class Site:
    """A limited application whose requests end when the test says so."""

    def __init__(self, folder, max_requests):
        self.path = folder / "api.counts"
        self.clock = ManualClock()
        spec = InflightLimitSpec(max_requests=max_requests, counts_path=str(self.path))
        self.limit = inflight_limit(spec, self.clock)
        self.app = LimitedApp(self._serve, self.limit)
        self.served = 0
        self.entered = asyncio.Event()
        self.may_end = asyncio.Event()
        self.fails = False

    async def _serve(self, scope, receive, send):
        self.served += 1
        self.entered.set()
        await self.may_end.wait()
        if self.fails:
            raise ConnectionResetError
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(self, path="/v1/completions", method="POST", kind="http"):
        """Return the status and headers of an answer, and its body."""
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": kind, "method": method, "path": path}
        await self.app(scope, None, send)
        head = dict(sent[0]["headers"])
        return sent[0]["status"], head, b"".join(m.get("body", b"") for m in sent[1:])


async def test_one_more_than_the_limit_is_turned_away_unread(tmp_path):
    site = Site(tmp_path, 1)
    first = asyncio.create_task(site.ask())
    await site.entered.wait()
    status, headers, body = await site.ask()
    assert (status, headers[b"content-type"], headers[b"retry-after"]) == (
        429,
        b"application/json",
        b"1",
    )
    assert int(headers[b"content-length"]) == len(body)
    error = json.loads(body)["error"]
    assert error.pop("message").startswith("this listener has 1 requests in flight already")
    assert error == {"type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
    assert site.served == 1
    assert num_turned_away(site.path) == 1
    site.may_end.set()
    assert (await first)[0] == 200
    assert (await site.ask())[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/health", "http"),
        ("GET", "/metrics", "http"),
        ("GET", "/v1/models", "http"),
        ("OPTIONS", "/v1/completions", "http"),
        ("POST", "/tokenize", "http"),
        ("POST", "/v1/realtime", "websocket"),
    ],
)
async def test_what_takes_nothing_of_the_node_is_free(tmp_path, method, path, kind):
    site = Site(tmp_path, 1)
    assert site.limit.try_begin() is not None
    site.may_end.set()
    assert (await site.ask(path, method, kind))[0] == 200


async def test_a_request_that_fails_or_is_cancelled_is_over(tmp_path):
    site = Site(tmp_path, 1)
    left = asyncio.create_task(site.ask())
    await site.entered.wait()
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    site.may_end.set()
    site.fails = True
    with pytest.raises(ConnectionResetError):
        await site.ask()
    site.fails = False
    assert (await site.ask())[0] == 200


async def test_clients_are_told_to_wait_until_one_should_be_over(tmp_path):
    site = Site(tmp_path, 4)
    assert site.limit.retry_after_s == 1
    for _ in range(100):
        begun_s = site.limit.try_begin()
        site.clock.advance(30.0)
        site.limit.end(begun_s)
    assert site.limit.retry_after_s == 8
    begun_s = site.limit.try_begin()
    site.clock.advance(1e6)
    site.limit.end(begun_s)
    assert site.limit.retry_after_s == MAX_RETRY_AFTER_S
