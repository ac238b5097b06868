import math

import pytest

from nodeserve.engine.simulated import wire
from nodeserve.errors import InvariantError

PREFILL_LEG = {"kv_transfer_params": {"do_remote_decode": True}}


def prompt(length, start=0):
    return list(range(start, start + length))


def hand_over(bench, tokens, **sampling):
    """Run a prefill leg and return its handoff."""
    bench.run("p", tokens, max_tokens=1, extra_args=PREFILL_LEG, **sampling)
    return bench.last_rows["p"][wire.KV_TRANSFER_PARAMS]


def decode_leg(handoff):
    return {"extra_args": {"kv_transfer_params": handoff}}


def test_prefill_leg_ends_with_a_handoff_and_keeps_its_blocks(bench):
    assert hand_over(bench, prompt(10)) == {
        "do_remote_prefill": True,
        "engine": 3,
        "lease_id": 1,
        "num_tokens": 10,
        "num_bytes": 3000,
    }
    assert bench.scheduler.num_requests == 0
    assert bench.usage() == pytest.approx(0.03)


def test_release_frees_the_blocks_and_a_late_release_does_nothing(bench):
    lease_id = hand_over(bench, prompt(10))["lease_id"]
    bench.scheduler.handoffs.release([lease_id], bench.now_s)
    assert bench.idle()
    bench.scheduler.handoffs.release([lease_id], bench.now_s)


def test_lease_that_nobody_releases_ends_by_itself(make_bench):
    bench = make_bench(lease_ttl_s=30.0)
    hand_over(bench, prompt(10))
    bench.step(20)
    assert not bench.idle()
    bench.step(20)
    assert bench.idle()
    assert bench.scheduler.handoffs.stats()["expired"] == 1


def test_handed_over_request_says_what_a_whole_one_says(make_bench):
    whole = make_bench().run("a", prompt(10), max_tokens=20, seed=4)
    handoff = hand_over(make_bench(), prompt(10), seed=4)
    assert make_bench().run("d", prompt(10), max_tokens=20, seed=4, **decode_leg(handoff)) == whole


def test_pull_takes_its_time_beside_other_requests(make_bench):
    handoff = hand_over(make_bench(), prompt(10))
    bench = make_bench()
    bench.add("other", prompt(4, start=50), max_tokens=20)
    bench.add("d", prompt(10), max_tokens=2, **decode_leg(handoff))
    # 1 s to set up and 3 blocks of 1000 bytes at 1000 bytes/s.
    assert [bench.step() for _ in range(4)] == [["other"]] * 4
    assert bench.scheduler.take_stats()["num_skipped_waiting_reqs"] == 1
    assert sorted(bench.step()) == ["d", "other"]
    assert bench.stats("d")["num_external_cached_tokens"] == 10
    assert bench.stats("d")["num_computed_tokens"] == 0
    assert bench.scheduler.handoffs.stats() == {
        "leased": 0,
        "loads": 1,
        "load_failures": 0,
        "load_bytes": 3000,
        "load_ms": 4000.0,
        "expired": 0,
    }


def test_pull_inside_the_step_makes_the_step_longer(make_bench):
    handoff = hand_over(make_bench(), prompt(10))
    bench = make_bench(async_load=False)
    bench.add("d", prompt(10), max_tokens=2, **decode_leg(handoff))
    assert bench.scheduler.plan(bench.now_s)
    assert bench.scheduler.pull_s == pytest.approx(4.0)
    assert [row[0] for row in bench.scheduler.finish_step(bench.now_s)] == ["d"]


def test_infinite_speed_pulls_in_no_time(make_bench):
    handoff = hand_over(make_bench(), prompt(10))
    bench = make_bench(speedup=math.inf)
    bench.add("d", prompt(10), max_tokens=2, **decode_leg(handoff))
    assert not bench.scheduler.plan(bench.now_s)
    assert bench.scheduler.handoffs.next_load_s == bench.now_s
    assert bench.step() == ["d"]


def test_only_blocks_that_are_not_cached_here_are_pulled(make_bench):
    handoff = hand_over(make_bench(), prompt(10))
    bench = make_bench()
    bench.run("a", prompt(8), max_tokens=1)
    bench.run("d", prompt(10), max_tokens=1, **decode_leg(handoff))
    assert bench.stats("d")["num_local_cached_tokens"] == 8
    assert bench.stats("d")["num_external_cached_tokens"] == 2
    assert bench.scheduler.handoffs.stats()["load_bytes"] == 1000


@pytest.mark.parametrize(
    "odd",
    [
        {"do_remote_prefill": True},
        {"do_remote_prefill": True, "engine": 1, "lease_id": 1, "num_tokens": 11, "num_bytes": 0},
        {"do_remote_prefill": True, "engine": 1, "lease_id": 1, "num_tokens": 0, "num_bytes": 0},
        {"do_remote_prefill": True, "engine": "x", "lease_id": 1, "num_tokens": 9, "num_bytes": 1},
    ],
)
def test_handoff_that_makes_no_sense_is_computed_here_and_counted(make_bench, odd):
    bench = make_bench()
    whole = make_bench().run("a", prompt(10), max_tokens=4)
    assert bench.run("d", prompt(10), max_tokens=4, **decode_leg(odd)) == whole
    assert bench.stats("d")["num_external_cached_tokens"] == 0
    assert bench.scheduler.handoffs.stats()["load_failures"] == 1


def test_abort_of_a_pulling_request_frees_its_blocks(make_bench):
    handoff = hand_over(make_bench(), prompt(10))
    bench = make_bench()
    bench.add("d", prompt(10), max_tokens=2, **decode_leg(handoff))
    bench.step()
    bench.scheduler.abort(["d"])
    bench.step(6)
    assert bench.idle()
    assert "d" not in bench.last_rows


def test_oldest_lease_ends_when_its_slot_is_needed(make_bench):
    bench = make_bench(lease_slots=1)
    first = hand_over(bench, prompt(10))["lease_id"]
    bench.last_rows.clear()
    second = hand_over(bench, prompt(10, 50))["lease_id"]
    handoffs = bench.scheduler.handoffs
    assert (handoffs.holds(first), handoffs.holds(second)) == (False, True)
    assert handoffs.stats()["expired"] == 1


def test_check_finds_a_leased_block_that_was_freed(bench):
    hand_over(bench, prompt(10))
    kv = bench.scheduler.handoffs._kv
    kv.release([0])
    with pytest.raises(InvariantError, match=r"blocks \[0\] are leased and free"):
        bench.scheduler.check()
    kv.match(bench.scheduler._kv._hash_of[:1])
