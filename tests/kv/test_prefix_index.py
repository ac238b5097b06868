import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.errors import InvariantError
from nodeserve.ids import BlockHash, Generation
from nodeserve.kv.prefix_index import PrefixIndex

ONE, TWO, THREE = (Generation(number) for number in (1, 2, 3))


def blocks(*numbers: int) -> tuple[BlockHash, ...]:
    return tuple(BlockHash(number) for number in numbers)


@pytest.fixture
def index():
    index = PrefixIndex()
    for generation in (ONE, TWO, THREE):
        index.add_worker(generation, 100)
    yield index
    index.check()


def test_each_worker_is_found_with_its_own_longest_prefix(index):
    index.store(ONE, blocks(10, 11, 12))
    index.store(TWO, blocks(10, 11))
    index.store(THREE, blocks(11, 12))
    assert index.longest_prefix(blocks(10, 11, 12, 13)) == {ONE: 3, TWO: 2}


def test_unknown_prompts_and_empty_prompts_find_nobody(index):
    index.store(ONE, blocks(10))
    assert index.longest_prefix(blocks(9, 10)) == {}
    assert index.longest_prefix(()) == {}


def test_a_hole_ends_the_prefix(index):
    index.store(ONE, blocks(10, 11, 12))
    index.remove(ONE, blocks(11))
    assert index.longest_prefix(blocks(10, 11, 12)) == {ONE: 1}


def test_removing_from_one_worker_leaves_the_others(index):
    index.store(ONE, blocks(10))
    index.store(TWO, blocks(10))
    index.remove(ONE, blocks(10, 99))
    assert index.longest_prefix(blocks(10)) == {TWO: 1}


def test_a_cleared_worker_holds_nothing_and_may_store_again(index):
    index.store(ONE, blocks(10, 11))
    index.clear(ONE)
    assert index.longest_prefix(blocks(10)) == {}
    index.store(ONE, blocks(10))
    assert index.longest_prefix(blocks(10)) == {ONE: 1}


def test_what_a_forgotten_worker_says_is_ignored(index):
    index.store(ONE, blocks(10))
    index.forget(ONE)
    index.store(ONE, blocks(10))
    index.remove(ONE, blocks(10))
    index.forget(ONE)
    assert index.longest_prefix(blocks(10)) == {}


def test_the_next_generation_inherits_nothing(index):
    index.store(ONE, blocks(10))
    index.forget(ONE)
    index.add_worker(Generation(4), 100)
    assert index.longest_prefix(blocks(10)) == {}


def test_past_its_limit_a_worker_loses_the_oldest_blocks():
    index = PrefixIndex()
    index.add_worker(ONE, 2)
    index.store(ONE, blocks(10, 11, 12))
    assert index.num_blocks(ONE) == 2
    assert index.longest_prefix(blocks(10)) == {}
    assert index.longest_prefix(blocks(11, 12)) == {ONE: 2}
    index.check()


def test_check_finds_a_holder_that_no_list_has(index):
    index._holders[BlockHash(10)] = 1
    with pytest.raises(InvariantError, match="1 hashes have holders"):
        index.check()
    index._holders.clear()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["store", "remove", "clear", "forget", "add"]),
            st.integers(1, 3),
            st.lists(st.integers(0, 6), max_size=5),
        )
    ),
    st.lists(st.integers(0, 6), max_size=6),
)
def test_it_agrees_with_plain_sets(steps, prompt):
    index = PrefixIndex()
    sets: dict[Generation, set[int]] = {}
    for step, number, hashes in steps:
        generation = Generation(number)
        if step == "add" and generation not in sets:
            index.add_worker(generation, 1000)
            sets[generation] = set()
        elif step == "store":
            index.store(generation, blocks(*hashes))
            sets.get(generation, set()).update(hashes)
        elif step == "remove":
            index.remove(generation, blocks(*hashes))
            sets.get(generation, set()).difference_update(hashes)
        elif step == "clear":
            index.clear(generation)
            sets.get(generation, set()).clear()
        elif step == "forget":
            index.forget(generation)
            sets.pop(generation, None)
        index.check()
    expected = {}
    for generation, held in sets.items():
        depth = next((i for i, block in enumerate(prompt) if block not in held), len(prompt))
        if depth:
            expected[generation] = depth
    assert index.longest_prefix(blocks(*prompt)) == expected
