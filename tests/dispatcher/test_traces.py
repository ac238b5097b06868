"""Claims about what is remembered of requests."""

from array import array
from typing import cast

import pytest

from nodeserve.dispatcher.gateway_link import GatewayLink
from nodeserve.dispatcher.records import ClientRequest
from nodeserve.dispatcher.traces import MAX_SAMPLES, NUM_TRACES, WINDOW_S, SlidingQuantiles, Traces
from nodeserve.ids import RequestId
from nodeserve.wire.status import Quantiles


class Gateway:
    listener = "chat"


def request(number: int) -> ClientRequest:
    return ClientRequest(
        request_id=RequestId(f"r{number}"),
        wire_id=f"w{number}",
        gateway=cast("GatewayLink", Gateway()),
        add=None,
        aux=[],
        prompt_tokens=7,
        arrived_s=10.0,
        first_output_s=10.5,
        sent=array("I", [1, 2, 3]),
    )


def test_nothing_seen_is_none() -> None:
    assert SlidingQuantiles().quantiles(now_s=0.0) == Quantiles()


def test_quantiles_are_of_what_was_seen_in_ms() -> None:
    latency = SlidingQuantiles()
    for value in range(101):
        latency.add(value / 1000, now_s=1.0)
    seen = latency.quantiles(now_s=1.0)
    assert seen.count == 101
    assert seen.p50_ms == pytest.approx(50.0)
    assert seen.p99_ms == pytest.approx(99.0)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    latency = SlidingQuantiles()
    latency.add(5.0, now_s=0.0)
    latency.add(1.0, now_s=WINDOW_S)
    assert latency.quantiles(now_s=WINDOW_S + 1).count == 1


def test_samples_are_bounded() -> None:
    latency = SlidingQuantiles()
    for _ in range(MAX_SAMPLES + 10):
        latency.add(1.0, now_s=0.0)
    assert latency.quantiles(now_s=0.0).count == MAX_SAMPLES


def test_trace_says_when_and_how_long() -> None:
    traces = Traces()
    traces.finished(request(1), "stop", now_s=12.0)
    (trace,) = traces.recent
    assert (trace.request_id, trace.listener, trace.finish) == ("w1", "chat", "stop")
    assert (trace.ttft_ms, trace.total_ms) == (500.0, 2000.0)
    assert (trace.prompt_tokens, trace.output_tokens, trace.resumed) == (7, 3, 0)


def test_last_requests_are_kept_and_no_more() -> None:
    traces = Traces()
    for number in range(NUM_TRACES + 5):
        traces.finished(request(number), "length", now_s=12.0)
    assert len(traces.recent) == NUM_TRACES
    assert traces.recent[-1].request_id == f"w{NUM_TRACES + 4}"


def test_ends_are_counted_by_kind() -> None:
    traces = Traces()
    for finish in ("stop", "length", "repetition", "error", "abort"):
        traces.finished(request(1), finish, now_s=12.0)
    counters = traces.counters
    assert (counters.finished_requests, counters.failed_requests) == (3, 1)
    assert counters.aborted_requests == 1
