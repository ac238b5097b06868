import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.engine.simulated.kv_blocks import Cleared, KvBlocks, Removed, Stored
from nodeserve.errors import InvariantError
from nodeserve.ids import BlockHash
from nodeserve.kv.block_hash import hash_blocks


@pytest.fixture
def kv():
    kv = KvBlocks(num_blocks=4, block_size=2)
    yield kv
    kv.check()


def stored(hashes, parent=None, salt=None):
    tokens = list(range(2 * len(hashes)))
    return Stored([BlockHash(value) for value in hashes], parent, tokens, salt)


def test_allocation_takes_and_release_gives_back(kv):
    blocks = kv.allocate(3)
    assert (kv.num_free, kv.usage) == (1, 0.75)
    kv.release(blocks)
    assert (kv.num_free, kv.usage) == (4, 0.0)


def test_allocation_beyond_what_is_free_gives_nothing_and_changes_nothing(kv):
    kv.allocate(2)
    assert kv.allocate(3) is None
    assert kv.num_free == 2


def test_cached_prefix_is_found_after_release_and_referred_to_again(kv):
    blocks = kv.allocate(2)
    kv.store(stored([11, 12]), blocks)
    kv.release(blocks)
    assert kv.match([11, 12, 13]) == blocks
    assert kv.num_free == 2
    kv.release(blocks)


def test_match_ends_at_the_first_unknown_block(kv):
    blocks = kv.allocate(2)
    kv.store(stored([11, 12]), blocks)
    assert kv.match([99, 12]) == []


def test_shared_block_is_free_only_when_both_have_released_it(kv):
    blocks = kv.allocate(1)
    kv.store(stored([11]), blocks)
    assert kv.match([11]) == blocks
    kv.release(blocks)
    assert kv.num_free == 3
    kv.release(blocks)
    assert kv.num_free == 4


def test_pinned_block_survives_its_owners_release(kv):
    blocks = kv.allocate(2)
    kv.pin(blocks)
    kv.release(blocks)
    assert kv.num_free == 2
    kv.release(blocks)
    assert kv.num_free == 4


def test_least_recently_released_is_evicted_first_and_a_sequence_from_its_tail(kv):
    first = kv.allocate(2)
    second = kv.allocate(2)
    kv.store(stored([11, 12]), first)
    kv.store(stored([21, 22]), second)
    kv.release(first)
    kv.release(second)
    kv.events.clear()
    kv.allocate(1)
    assert kv.events == [Removed([BlockHash(12)])]
    assert kv.match([11, 12]) == [first[0]]
    assert len(kv.match([21, 22])) == 2


def test_store_reports_only_what_is_new_each_part_with_its_parent(kv):
    kv.store(stored([12]), kv.allocate(1))
    kv.events.clear()
    kv.store(stored([11, 12, 13], parent=10), kv.allocate(3))
    assert kv.events == [
        Stored([BlockHash(11)], BlockHash(10), [0, 1], None),
        Stored([BlockHash(13)], BlockHash(12), [4, 5], None),
    ]


def test_without_prefix_caching_nothing_is_stored():
    kv = KvBlocks(4, 2, prefix_caching=False)
    kv.store(stored([11]), kv.allocate(1))
    assert kv.match([11]) == []
    assert kv.events == []


def test_clear_forgets_prefixes_only_when_no_block_is_in_use(kv):
    blocks = kv.allocate(1)
    kv.store(stored([11]), blocks)
    assert kv.clear_cache() is False
    kv.release(blocks)
    kv.events.clear()
    assert kv.clear_cache() is True
    assert kv.events == [Cleared()]
    assert kv.match([11]) == []


def test_release_without_reference_is_a_bug(kv):
    blocks = kv.allocate(1)
    kv.release(blocks)
    with pytest.raises(InvariantError, match="released twice"):
        kv.release(blocks)


def test_huge_pool_costs_nothing_before_it_is_used():
    kv = KvBlocks(num_blocks=1 << 60, block_size=16)
    assert kv.allocate(2) == [0, 1]
    assert kv.num_free == (1 << 60) - 2


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=30))
def test_blocks_add_up_over_any_history(prompts):
    kv = KvBlocks(num_blocks=4, block_size=2)
    held = []
    for prompt in prompts:
        hashes = list(hash_blocks(prompt, 2))
        cached = kv.match(hashes)
        fresh = kv.allocate(-(-len(prompt) // 2) - len(cached))
        if fresh is None:
            kv.release(cached)
            if held:
                kv.release(held.pop(0))
        else:
            blocks = cached + fresh
            kv.store(Stored(hashes, None, prompt[: 2 * len(hashes)], None), blocks[: len(hashes)])
            held.append(blocks)
        kv.check()
    for blocks in held:
        kv.release(blocks)
    assert kv.usage == 0
    kv.check()


def test_block_is_free_when_nobody_refers_to_it(kv):
    (block,) = kv.allocate(1)
    assert not kv.is_free(block)
    kv.release([block])
    assert kv.is_free(block)
