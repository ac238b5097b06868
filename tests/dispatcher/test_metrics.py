"""Claims about merged scheduler statistics."""

from typing import Any

import pytest

from nodeserve.dispatcher.metrics import EngineGauges, NodeStats
from nodeserve.router.messages import LegKind
from tests.dispatcher.fakes import encode, stats

NOBODY = dict.fromkeys(LegKind, 0)


def node(*num_blocks: int) -> tuple[NodeStats, list[EngineGauges]]:
    gauges = [EngineGauges(blocks) for blocks in num_blocks]
    merged = NodeStats()
    for engine in gauges:
        merged.joined(engine)
    return merged, gauges


def take(
    merged: NodeStats, engine: EngineGauges, said: Any, unstarted: dict[LegKind, int] = NOBODY
) -> bool:
    return merged.take(engine, encode(said), unstarted)


def looks(requests: int, queries: int, hits: int, *, reset: bool = False) -> dict[str, Any]:
    return {
        "reset": reset,
        "requests": requests,
        "queries": queries,
        "hits": hits,
        "hits_by_source": {},
    }


def reported(merged: NodeStats) -> dict[str, Any]:
    shown = merged.report()
    assert shown is not None
    return shown


def test_requests_add_up_and_usage_is_weighted_by_blocks() -> None:
    merged, (small, large) = node(10, 30)
    take(merged, small, stats(3, 2, 1.0))
    take(merged, large, stats(4, 1, 0.2))
    shown = reported(merged)
    assert (shown["num_running_reqs"], shown["num_waiting_reqs"]) == (7, 3)
    assert shown["kv_cache_usage"] == pytest.approx((10 + 6) / 40)


def test_later_word_of_an_engine_replaces_its_earlier_one() -> None:
    merged, (one, two) = node(10, 10)
    take(merged, one, stats(3, 2, 1.0))
    take(merged, two, stats(1, 0, 0.0))
    take(merged, one, stats())
    shown = reported(merged)
    assert (shown["num_running_reqs"], shown["kv_cache_usage"]) == (1, 0.0)


def test_engine_that_left_counts_no_more() -> None:
    merged, (one, two) = node(10, 30)
    fetching = {"in_progress": 2}
    take(merged, one, stats(3, 2, 1.0, num_kv_fetch_reqs_by_stage=fetching))
    take(merged, two, stats(1, 1, 0.5))
    merged.changed = False
    merged.left(one)
    assert merged.changed
    shown = reported(merged)
    assert (shown["num_running_reqs"], shown["num_waiting_reqs"]) == (1, 1)
    assert shown["kv_cache_usage"] == pytest.approx(0.5)
    assert shown["num_kv_fetch_reqs_by_stage"] == {"in_progress": 0}


def test_fetching_requests_add_up_by_stage() -> None:
    merged, (one, two) = node(10, 10)
    take(merged, one, stats(num_kv_fetch_reqs_by_stage={"in_progress": 2}))
    said = stats(num_kv_fetch_reqs_by_stage={"in_progress": 1, "waiting_to_start": 1})
    take(merged, two, said)
    assert reported(merged)["num_kv_fetch_reqs_by_stage"] == {
        "in_progress": 3,
        "waiting_to_start": 1,
    }


def test_prompt_that_was_handed_over_is_looked_up_once() -> None:
    merged, (prefill, decode) = node(10, 10)
    said = stats(prefix_cache_stats=looks(2, 100, 40))
    take(merged, prefill, said, NOBODY | {LegKind.PREFILL: 2})
    assert reported(merged)["prefix_cache_stats"] == looks(2, 100, 40)
    said = stats(prefix_cache_stats=looks(2, 100, 0))
    take(merged, decode, said, NOBODY | {LegKind.DECODE: 2})
    assert reported(merged)["prefix_cache_stats"] == looks(0, 0, 0)


def test_mixed_step_counts_the_share_of_those_that_were_not_handed_over() -> None:
    merged, (engine,) = node(10)
    said = stats(prefix_cache_stats=looks(4, 100, 40))
    take(merged, engine, said, NOBODY | {LegKind.DECODE: 3, LegKind.WHOLE: 1})
    assert reported(merged)["prefix_cache_stats"] == looks(1, 25, 10)


def test_looks_of_many_steps_are_reported_exactly_once() -> None:
    merged, engines = node(10, 10)
    for number in range(1, 21):
        found = looks(1, number, number // 2) | {"hits_by_source": {"local": number}}
        more = {"connector_prefix_cache_stats": looks(0, 7, 1)} if number % 2 else {}
        take(merged, engines[number % 2], stats(prefix_cache_stats=found, **more))
        take(merged, engines[number % 2], stats())
    shown = reported(merged)
    assert shown["prefix_cache_stats"] == looks(20, 210, 100) | {"hits_by_source": {"local": 210}}
    assert shown["connector_prefix_cache_stats"] == looks(0, 70, 10)
    again = reported(merged)
    assert again["prefix_cache_stats"] == looks(0, 0, 0)
    assert not again.get("connector_prefix_cache_stats")


def test_reset_of_a_prefix_cache_is_passed_on_once() -> None:
    merged, (engine,) = node(10)
    take(merged, engine, stats(prefix_cache_stats=looks(0, 0, 0, reset=True)))
    take(merged, engine, stats(prefix_cache_stats=looks(1, 4, 0)))
    assert reported(merged)["prefix_cache_stats"] == looks(1, 4, 0, reset=True)
    assert reported(merged)["prefix_cache_stats"] == looks(0, 0, 0)


@pytest.mark.parametrize(
    "counter", [{"spec_decoding_stats": {"num_drafts": 1}}, {"kv_cache_eviction_events": [{}]}]
)
def test_what_cannot_be_added_up_is_urgent_and_reported_once(counter: dict[str, Any]) -> None:
    merged, (engine,) = node(10)
    assert take(merged, engine, stats(1, **counter))
    assert reported(merged) == stats(1, **counter)
    assert reported(merged) == stats(1)
    assert not take(merged, engine, stats(1))


def test_nothing_is_reported_before_an_engine_has_spoken() -> None:
    merged, (engine,) = node(10)
    assert (merged.report(), merged.changed) == (None, False)
    merged.left(engine)
    assert (merged.report(), merged.changed) == (None, False)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        5,
        [],
        {},
        stats() | {"num_running_reqs": "x"},
        stats() | {"kv_cache_usage": None},
        stats() | {"num_kv_fetch_reqs_by_stage": [1]},
        stats() | {"prefix_cache_stats": 5},
        stats() | {"prefix_cache_stats": looks(1, 2, 3) | {"queries": "x"}},
        stats() | {"connector_prefix_cache_stats": looks(1, 2, 3) | {"hits": 1.5}},
        stats() | {"num_kv_fetch_reqs_by_stage": {"x": "y"}},
    ],
)
def test_garbage_is_refused_and_changes_nothing(bad: Any) -> None:
    merged, (engine,) = node(10)
    take(merged, engine, stats(3, 2, 0.5))
    with pytest.raises(ValueError, match="cannot be read"):
        take(merged, engine, bad)
    assert reported(merged) == stats(3, 2, 0.5)


def test_statistics_that_count_nothing_are_known_again_and_others_are_not() -> None:
    merged, (engine,) = node(10)
    take(merged, engine, stats(3))
    assert engine.said == encode(stats(3))
    for counts in ({"prefix_cache_stats": looks(1, 4, 0)}, {"spec_decoding_stats": {"x": 1}}):
        take(merged, engine, stats(3, **counts))
        assert engine.said == b""
