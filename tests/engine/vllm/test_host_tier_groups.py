"""The scheduler's half of the host tier for a model of several KV cache groups."""

import pytest

from nodeserve.engine.vllm.host_tier_orders import TierReport
from nodeserve.kv.layout import NULL_BLOCK
from nodeserve.wire.kv_tier import ABSENT
from tests.support.tier_half import Engine, FakePool, found, key


@pytest.fixture
def hybrid():
    """An engine of full attention and of a window, with room for three blocks of both."""
    made = Engine(pool=FakePool(num_gpu_blocks=24), num_groups=2)
    yield made
    assert not made.pool.held


def test_a_slot_is_loaded_into_a_block_of_each_group_that_needs_it(hybrid):
    request = hybrid.arrive("r", 18)
    found(hybrid, [5, 6, 7, 8])
    assert hybrid.half.loadable_tokens(request, 4) == 12
    hybrid.tables["r"][1][:3] = [NULL_BLOCK] * 3
    hybrid.half.allocated(request, hybrid.tables["r"], 12)
    (load,) = hybrid.step().loads
    assert (load.slots, load.blocks) == ([6, 7, 8], [(11, 0), (12, 0), (13, 33)])
    hybrid.report(TierReport(), finished=["r"])
    hybrid.half.finish(request)


def test_blocks_of_all_groups_are_held_and_stored_together(hybrid):
    request = hybrid.arrive("r", 10)
    found(hybrid, [ABSENT, ABSENT])
    hybrid.step(r=10)
    assert hybrid.pool.held == {10: 1, 11: 1, 30: 1, 31: 1}
    hybrid.half.finish(request)
    hybrid.grant(0, [3, ABSENT])
    (store,) = hybrid.step().stores
    assert (store.slots, store.blocks) == ([3], [(10, 30)])
    assert hybrid.pool.held == {10: 1, 30: 1}
    hybrid.report(TierReport(ended={store.job_id: 1}))


def test_what_left_its_window_before_there_was_room_is_never_stored(hybrid):
    request = hybrid.arrive("r", 29)
    found(hybrid, [ABSENT] * 7)
    hybrid.step(r=29)
    assert [keys for keys, _, _ in hybrid.client.reserved] == [key(0) + key(1) + key(2)]
    request.num_computed_tokens = 29
    hybrid.tables["r"][1][:5] = [NULL_BLOCK] * 5
    hybrid.grant(0, [])
    hybrid.step()
    hybrid.step(r=1)
    assert [call[:2] for call in hybrid.client.reserved[1:]] == [(key(5) + key(6), key(4))]
    hybrid.grant(1, [])
    hybrid.step()
    hybrid.half.finish(request)
