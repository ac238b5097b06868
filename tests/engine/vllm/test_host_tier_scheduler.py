"""The scheduler's half against a client that answers when told, and a pool that only counts."""

import pytest

from nodeserve.engine.vllm.host_tier_orders import TierReport
from nodeserve.wire.kv_tier import ABSENT
from tests.support.tier_half import Engine, FakePool, FakeRequest, found, key


@pytest.fixture
def engine():
    made = Engine()
    yield made
    assert not made.pool.held
    assert made.half.num_held_blocks == 0
    assert not made.half.is_busy


def test_a_hit_is_loaded_behind_the_local_prefix_and_its_pins_given_back_when_it_is_over(engine):
    request = engine.arrive("r", 18)
    assert engine.client.asked == [("", b"".join(map(key, range(4))))]
    assert engine.half.loadable_tokens(request, 4) is None
    found(engine, [5, 6, 7, ABSENT])
    assert engine.half.loadable_tokens(request, 4) == 8
    engine.half.allocated(request, engine.tables["r"], 8)
    (load,) = engine.step().loads
    assert (load.request_id, load.slots, load.blocks) == ("r", [6, 7], [(11,), (12,)])
    assert load.keys == [key(1), key(2)]
    assert engine.step().loads == []
    assert engine.client.said == []
    engine.report(TierReport(load_bytes=9, load_ms=2.0), finished=["r"])
    assert engine.client.said == [("read", 9, 0.002), ("release", 1)]
    assert engine.half.stats()["loaded_tokens"] == 8
    engine.half.finish(request)


def test_the_last_token_is_always_computed_here(engine):
    request = engine.arrive("r", 16)
    found(engine, [1, 2, 3, 4])
    assert engine.half.loadable_tokens(request, 0) == 15
    engine.half.allocated(request, engine.tables["r"], 15)
    assert engine.step().loads[0].slots == [1, 2, 3, 4]
    engine.report(TierReport(), finished=["r"])
    assert engine.half.loadable_tokens(request, 15) == 0
    engine.half.finish(request)


def test_a_whole_local_hit_loads_nothing(engine):
    request = engine.arrive("r", 17)
    found(engine, [1, 2, 3, 4])
    assert engine.half.loadable_tokens(request, 16) == 0
    engine.half.finish(request)
    assert engine.client.said == [("release", 1)]


def test_what_is_computed_is_stored_by_a_later_step_and_published(engine):
    request = engine.arrive("r", 10)
    found(engine, [ABSENT, ABSENT])
    step = engine.step(r=10)
    assert step.stores == []
    assert [(keys, parent) for keys, parent, _ in engine.client.reserved] == [
        (key(0) + key(1), b"")
    ]
    assert engine.pool.held == {10: 1, 11: 1}
    engine.half.finish(request)
    assert engine.half.is_busy  # the engine steps on, though no request does
    engine.grant(0, [3, 4])
    (store,) = engine.step().stores
    assert (store.slots, store.keys, store.blocks) == ([3, 4], [key(0), key(1)], [(10,), (11,)])
    engine.report(TierReport(ended={store.job_id: 1}, store_bytes=2, store_ms=1.0))
    assert engine.client.said[-2:] == [("written", 2, 0.001), ("publish", [3, 4])]


def test_a_step_shows_the_tier_before_the_first_slot_of_it(engine):
    request = engine.arrive("r", 4)
    found(engine, [ABSENT])
    assert engine.step(r=4).welcome is None
    engine.grant(0, [3])
    step = engine.step()
    assert step.welcome is engine.client.welcome
    engine.report(TierReport(ended={1: 1}))
    engine.half.finish(request)


def test_only_missing_blocks_are_offered_each_run_behind_its_parent(engine):
    request = engine.arrive("r", 21)
    found(engine, [1, ABSENT, 2, ABSENT, ABSENT])
    engine.step(r=21)
    assert [(keys, parent) for keys, parent, _ in engine.client.reserved] == [
        (key(1), key(0)),
        (key(3) + key(4), key(2)),
    ]
    for number in (0, 1):
        engine.grant(number, [])
    engine.step()
    engine.half.finish(request)


def test_each_block_is_offered_once_over_many_steps(engine):
    request = engine.arrive("r", 9)
    found(engine, [ABSENT, ABSENT])
    for scheduled in (3, 3, 3):
        engine.step(r=scheduled)
        request.num_computed_tokens += scheduled
    request.num_tokens = 13  # it generates
    for _ in range(4):
        engine.step(r=1)
        request.num_computed_tokens += 1
    offered = [keys for keys, _, _ in engine.client.reserved]
    assert offered == [key(0), key(1), key(2)]
    for number in range(3):
        engine.grant(number, [])
    engine.step()
    engine.half.finish(request)


def test_a_block_whose_tokens_are_not_known_yet_is_not_offered(engine):
    request = engine.arrive("r", 7)
    found(engine, [ABSENT])
    engine.step(r=8)  # async scheduling: the eighth token is still on the device
    assert [keys for keys, _, _ in engine.client.reserved] == [key(0)]
    request.num_computed_tokens, request.num_tokens = 8, 9
    engine.step(r=1)
    assert [keys for keys, _, _ in engine.client.reserved] == [key(0), key(1)]
    for number in (0, 1):
        engine.grant(number, [])
    engine.step()
    engine.half.finish(request)


def test_slots_for_some_blocks_let_the_others_go(engine):
    request = engine.arrive("r", 12)
    found(engine, [ABSENT] * 3)
    engine.step(r=12)
    engine.grant(0, [ABSENT, 8, ABSENT])
    (store,) = engine.step().stores
    assert (store.slots, store.keys, store.blocks) == ([8], [key(1)], [(11,)])
    assert engine.pool.held == {11: 1}
    engine.report(TierReport(ended={store.job_id: 1}))
    engine.half.finish(request)


def test_a_store_is_over_when_every_rank_says_so_and_fails_if_one_does():
    engine = Engine(num_ranks=2)
    request = engine.arrive("r", 4)
    found(engine, [ABSENT])
    engine.step(r=4)
    engine.grant(0, [3])
    engine.step()
    engine.report(TierReport(ended={1: 1}, failed={1}))
    assert engine.client.said == [("release", 1)]
    assert engine.pool.held == {10: 1}
    engine.report(TierReport(ended={1: 1}))
    assert engine.client.said[-1] == ("abandon", [3])
    assert not engine.pool.held
    engine.half.finish(request)


def test_a_failed_load_is_counted_and_not_tried_again(engine):
    request = engine.arrive("r", 9)
    found(engine, [1, 2])
    assert engine.half.loadable_tokens(request, 0) == 8
    engine.half.allocated(request, engine.tables["r"], 8)
    engine.step()
    engine.report(TierReport(), finished=["r"], failed=["r"])
    assert engine.half.stats()["load_failures"] == 1
    assert engine.half.loadable_tokens(request, 0) == 0
    assert len(engine.client.asked) == 1
    engine.half.finish(request)


def test_a_request_that_ends_amid_its_load_keeps_its_pins_until_the_load_is_over(engine):
    request = engine.arrive("r", 9)
    found(engine, [1, 2])
    engine.half.loadable_tokens(request, 0)
    engine.half.allocated(request, engine.tables["r"], 8)
    engine.step()
    engine.half.finish(request)
    assert engine.client.said == []
    engine.report(TierReport(), finished=["r"])
    assert engine.client.said == [("release", 1)]


def test_a_preempted_request_is_looked_up_again(engine):
    request = engine.arrive("r", 9)
    found(engine, [ABSENT, ABSENT])
    assert engine.half.loadable_tokens(request, 0) == 0
    request.num_preemptions = 1
    assert engine.half.loadable_tokens(request, 0) is None
    found(engine, [4, ABSENT])
    assert engine.half.loadable_tokens(request, 0) == 4
    engine.half.finish(request)


def test_a_handed_over_prompt_is_not_looked_up_and_only_what_follows_it_is_offered(engine):
    params = {"do_remote_prefill": True, "num_tokens": 9}
    request = engine.arrive("r", 13, kv_transfer_params=params)
    assert engine.client.asked == []
    engine.step(r=13)
    assert [(keys, parent) for keys, parent, _ in engine.client.reserved] == [(key(2), key(1))]
    engine.grant(0, [])
    engine.step()
    engine.half.finish(request)


def test_a_failed_handoff_is_looked_up_and_offered_from_the_start(engine):
    params = {"do_remote_prefill": True, "num_tokens": 9}
    request = engine.arrive("r", 9, kv_transfer_params=params)
    engine.half.look_again("r")
    found(engine, [ABSENT, 5])
    assert engine.half.loadable_tokens(request, 0) == 0
    engine.step(r=9)
    assert [keys for keys, _, _ in engine.client.reserved] == [key(0)]
    engine.grant(0, [])
    engine.step()
    engine.half.finish(request)


def test_prompts_that_must_be_computed_are_not_looked_up(engine):
    request = engine.arrive("r", 9, skip_reading_prefix_cache=True)
    assert engine.half.loadable_tokens(request, 0) == 0
    assert engine.client.asked == []
    engine.half.finish(request)


def test_without_a_block_manager_requests_run_as_if_there_were_no_tier(engine):
    engine.client.is_there = False
    request = engine.arrive("r", 9)
    assert engine.half.loadable_tokens(request, 0) == 0
    engine.step(r=9)
    engine.half.finish(request)


def test_stores_hold_a_bounded_share_of_the_pool_and_begin_with_the_head():
    engine = Engine(pool=FakePool(num_gpu_blocks=8))
    request = engine.arrive("r", 17)
    found(engine, [ABSENT] * 4)
    engine.step(r=17)
    assert [keys for keys, _, _ in engine.client.reserved] == [key(0) + key(1)]
    request.num_computed_tokens = 17
    engine.grant(0, [])
    engine.step()
    engine.step(r=1)  # room again
    assert [keys for keys, _, _ in engine.client.reserved][1:] == [key(2) + key(3)]
    engine.grant(1, [])
    engine.step()
    engine.half.finish(request)
    assert engine.half.stats()["dropped_blocks"] == 0


def test_what_no_step_had_room_to_offer_is_counted_as_dropped():
    engine = Engine(pool=FakePool(num_gpu_blocks=8))
    request = engine.arrive("r", 17)
    found(engine, [ABSENT] * 4)
    engine.step(r=17)
    request.num_computed_tokens = 17
    engine.half.finish(request)
    assert engine.half.stats()["dropped_blocks"] == 2
    engine.grant(0, [])
    engine.step()
    assert not engine.pool.held


def test_an_unknown_request_loads_nothing(engine):
    assert engine.half.loadable_tokens(FakeRequest("stranger", 9), 0) == 0
