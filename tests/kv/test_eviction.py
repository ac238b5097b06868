"""What policies rank first."""

import pytest

from nodeserve.errors import ConfigError
from nodeserve.kv.eviction import POLICIES, Lru, TwoQueue, make_policy
from tests.kv.tiers import key


def order(policy, slots) -> list[int]:
    return sorted(slots, key=policy.rank)


@pytest.mark.parametrize("name", POLICIES)
def test_what_was_used_last_is_kept_longest(name) -> None:
    policy = make_policy(name, 4)
    for slot in range(3):
        policy.stored(slot, key(slot))
    policy.used([0])
    assert order(policy, range(3)) == [1, 2, 0]


@pytest.mark.parametrize("name", POLICIES)
def test_use_never_lowers_a_rank(name) -> None:
    policy = make_policy(name, 4)
    policy.stored(0, key(0))
    ranks = [policy.rank(0)]
    for _ in range(6):
        policy.used([0])
        ranks.append(policy.rank(0))
    assert ranks == sorted(set(ranks))


def test_lru_ranks_the_last_of_one_use_highest() -> None:
    policy = Lru(4)
    policy.used([2, 1, 0])
    assert order(policy, range(3)) == [2, 1, 0]


def test_two_queue_keeps_what_was_wanted_over_newer_blocks_that_nobody_asked_for() -> None:
    policy = TwoQueue(4)
    policy.stored(0, key(0))
    policy.used([0])
    for slot in (1, 2, 3):
        policy.stored(slot, key(slot))
    assert order(policy, range(4)) == [1, 2, 3, 0]


def test_two_queue_lets_what_was_wanted_age() -> None:
    policy = TwoQueue(2)
    policy.stored(0, key(0))
    policy.used([0])
    for _ in range(4):
        policy.stored(1, key(1))
    assert policy.rank(0) < policy.rank(1)


def test_two_queue_counts_a_block_that_comes_back_soon_as_wanted() -> None:
    policy = TwoQueue(4)
    policy.stored(0, key("back"))
    policy.dropped(0, key("back"))
    policy.stored(0, key("back"))
    policy.stored(1, key("new"))
    assert order(policy, range(2)) == [1, 0]


def test_two_queue_remembers_no_more_evicted_keys_than_it_has_slots() -> None:
    policy = TwoQueue(2)
    for name in range(5):
        policy.dropped(0, key(name))
    assert list(policy._gone) == [key(3), key(4)]


def test_a_policy_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'mru' is not one of lru, 2q"):
        make_policy("mru", 4)
