"""Policies and sizes compared over a log."""

import pytest

from nodeserve.errors import ConfigError
from nodeserve.kv.replay import replay
from nodeserve.kv.tier_log import LogHeader, Op, header, line, parse
from tests.kv.tiers import keys


def log_of(*entries):
    texts = [header(LogHeader(4, 4096))]
    texts += [
        line(op, listener, keys(*names), at_s=at)
        for at, (op, listener, names) in enumerate(entries)
    ]
    return list(parse(texts))


def request(*names, listener="l"):
    return [(Op.LOOK_UP, listener, names), (Op.STORE, listener, names)]


def test_a_tier_that_holds_everything_finds_what_was_stored_before() -> None:
    log = log_of(*request("a", "b"), *request("a", "b", "c"))
    (result,) = replay(log, ["lru"], [10], {})
    assert (result.keys, result.hits, result.prefix_hits) == (5, 2, 2)
    assert (result.stores, result.evictions) == (3, 0)
    assert result.hit_rate == pytest.approx(0.4)
    assert result.listeners == {"l": (2, 5)}


def test_every_policy_is_tried_at_every_size() -> None:
    results = replay(log_of(), ["lru", "2q"], [1, 2], {})
    assert [(r.policy, r.num_slots) for r in results] == [
        ("lru", 1),
        ("2q", 1),
        ("lru", 2),
        ("2q", 2),
    ]
    assert results[0].hit_rate == 0.0


def test_a_scan_that_nobody_wants_again_costs_lru_what_two_queue_keeps() -> None:
    wanted = request("a", "b") + [(Op.LOOK_UP, "l", ("a", "b"))] * 2
    scan = [entry for number in range(6) for entry in request(number)]
    lru, two_queue = replay(log_of(*wanted, *scan, *request("a", "b")), ["lru", "2q"], [6], {})
    assert (lru.hits, two_queue.hits) == (4, 6)


def test_blocks_behind_a_miss_are_of_no_use() -> None:
    log = log_of((Op.STORE, "l", ("b",)), (Op.LOOK_UP, "l", ("a", "b")))
    (result,) = replay(log, ["lru"], [4], {})
    assert (result.hits, result.prefix_hits) == (1, 0)


def test_quotas_hold_in_a_replay() -> None:
    log = log_of(*request(1, 2, 3, 4, listener="small"))
    (result,) = replay(log, ["lru"], [4], {"small": 0.5})
    assert result.stores == 2


def test_evictions_of_the_policy_that_wrote_the_log_are_left_out() -> None:
    log = log_of(*request("a"), (Op.EVICT, "l", ("a",)), *request("a"))
    assert replay(log, ["lru"], [4], {})[0].hits == 1


def test_a_policy_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="'best' is not one of"):
        replay(log_of(), ["best"], [4], {})
