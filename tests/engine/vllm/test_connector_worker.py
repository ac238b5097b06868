"""Loads that fail, whatever the cause, are computed again: slower, never wrong."""

import copy
import random

import pytest

from nodeserve.wire.spawn import KvSpec
from tests.engine.vllm.conftest import ASYNC, SHORT, SYNC

pytestmark = pytest.mark.vllm

VICTIM = 21
MAX_TOKENS = 8


@pytest.fixture(scope="module")
def prompt():
    rng = random.Random(3)
    return [rng.randrange(5, 260) for _ in range(700)]


@pytest.fixture(scope="module")
def expected(node, prompt):
    tokens = node.whole(ASYNC, prompt, MAX_TOKENS).tokens
    assert node.cache_is_free(ASYNC)
    return tokens


def dead_owner(handoff):
    handoff["engine"] += 1000  # a generation that is not mapped yet
    handoff["pools"][0]["handle"]["pid"] = 2**22 + 1


def other_file(handoff):
    handoff["engine"] += 1000
    handoff["pools"][0]["handle"]["inode"] += 1


def other_generation(handoff):
    handoff["engine"] += 1000


def other_shape(handoff):
    handoff["engine"] += 1000
    handoff["pools"][0]["geometry"]["page_format"] = "torch.bfloat16"


def missing_ranks(handoff):
    """The first of two ranks, and the other one does not come with it."""
    handoff["engine"] += 1000
    for place in handoff["pools"][0]["geometry"]["places"]:
        place["heads"]["count"] = 1


def other_lease(handoff):
    handoff["lease_id"] += 1


def foreign_blocks(handoff):
    handoff["groups"][0]["blocks"][-1] = 10**6


CORRUPTIONS = [
    dead_owner,
    other_file,
    other_generation,
    other_shape,
    missing_ranks,
    other_lease,
    foreign_blocks,
]


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
@pytest.mark.parametrize("decode", [ASYNC, SYNC])
def test_a_load_that_fails_is_recomputed_with_the_same_tokens(
    node, prompt, expected, decode, corrupt
) -> None:
    prefill = SYNC if decode == ASYNC else ASYNC
    handoff = node.prefill(prefill, prompt)
    broken = copy.deepcopy(handoff)
    corrupt(broken)
    before = node.stats(decode)["load_failures"]
    answer = node.decode(decode, prompt, MAX_TOKENS, broken)
    assert answer.tokens == expected
    assert answer.prefill["num_computed_tokens"] == len(prompt)
    assert node.stats(decode)["load_failures"] == before + 1
    node.release(handoff)
    assert node.cache_is_free(decode)
    assert node.cache_is_free(prefill)


@pytest.mark.parametrize("decode", [ASYNC, SYNC])
def test_after_a_failed_load_the_prompt_is_good_to_be_hit(node, prompt, expected, decode) -> None:
    handoff = node.prefill(SHORT, prompt)
    node.stats(SHORT)  # its lease has ended
    legs = [node.add(decode, prompt, MAX_TOKENS, **handoff) for _ in range(2)]
    assert [node.finish(leg).tokens for leg in legs] == [expected] * 2
    assert node.whole(decode, prompt, MAX_TOKENS).tokens == expected
    assert node.cache_is_free(decode)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_prefill_engine_killed_after_its_handoff_costs_no_token(
    node, prompt, expected, mapped
) -> None:
    victim = VICTIM + mapped
    node.start(node.spec(victim, KvSpec(), {}))
    node.wait_ready(victim)
    if mapped:
        node.decode(ASYNC, prompt[:40], 1, node.prefill(victim, prompt[:40]))
        assert node.cache_is_free(ASYNC)
    handoff = node.prefill(victim, prompt)
    node.processes[victim].kill()
    node.processes[victim].join(10)
    before = node.stats(ASYNC)["load_failures"]
    assert node.decode(ASYNC, prompt, MAX_TOKENS, handoff).tokens == expected
    # Bytes that are mapped outlive their owner, and their lease still holds.
    assert node.stats(ASYNC)["load_failures"] == before + (not mapped)
    assert node.cache_is_free(ASYNC)
