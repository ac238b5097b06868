"""What one engine computed, another one loads; whatever goes wrong below, answers stay the same."""

import itertools
import random
import shutil
import tempfile
from pathlib import Path

import pytest

from nodeserve.transfer.slot_directory import SlotState
from nodeserve.wire.kv_tier import KvLookup, KvReserve
from nodeserve.wire.spawn import KvSpec
from tests.support.plain_block_manager import PlainBlockManager
from tests.support.vllm_node import VllmNode

pytestmark = pytest.mark.vllm

FIRST, SECOND, PLAIN, LATE = 1, 2, 3, 4
BLOCK = 32
MAX_TOKENS = 8
HASHES = {"prefix_caching_hash_algo": "sha256_cbor"}

_seeds = itertools.count(100)


@pytest.fixture(scope="module")
def tier():
    folder = Path(tempfile.mkdtemp(prefix="ns-"))
    manager = PlainBlockManager(f"ipc://{folder}/tier")
    manager.address = f"ipc://{folder}/tier"
    yield manager
    manager.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def engines(vllm_context, tiny_model, tier):
    folder = Path(tempfile.mkdtemp(prefix="ns-"))
    node = VllmNode(vllm_context, folder, tiny_model)
    try:
        kv = KvSpec(tier_address=tier.address)
        node.start(node.spec(FIRST, kv, HASHES))
        node.start(node.spec(SECOND, kv, HASHES))
        node.start(node.spec(PLAIN, KvSpec(), HASHES))
        node.wait_ready(FIRST, SECOND, PLAIN)
        yield node
    finally:
        node.close()
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def nothing_is_left(engines, tier):
    """Whatever happened, no block stays held and no pin stays taken."""
    yield
    tier.silent, tier.stores = False, True
    for generation in (FIRST, SECOND):
        assert any(engines.cache_is_free(generation) for _ in range(500))
        assert engines.call(generation, "nodeserve_tier_stats")["held_blocks"] == 0
    tier.wait_until(lambda: not tier.pinned and not tier.writing)


def new_prompt(length):
    """A prompt that nobody has seen, of random tokens."""
    rng = random.Random(next(_seeds))
    return [rng.randrange(5, 260) for _ in range(length)]


def tier_stats(engines, generation):
    return engines.call(generation, "nodeserve_tier_stats")


def stored(engines, tier, prompt, generation=FIRST, max_tokens=MAX_TOKENS):
    """Let an engine compute a prompt and return its answer, once its full blocks are stored."""
    before = len(tier.index)
    answer = engines.whole(generation, prompt, max_tokens)
    num_blocks = (len(prompt) + max_tokens - 1) // BLOCK
    tier.wait_until(lambda: len(tier.index) >= before + num_blocks)
    assert len(tier.index) == before + num_blocks
    return answer


def cached(answer):
    return answer.prefill["num_external_cached_tokens"]


@pytest.mark.parametrize("length", [33, 64, 65, 1000, 1900])
def test_another_engine_loads_what_one_has_computed(engines, tier, length):
    prompt = new_prompt(length)
    first = stored(engines, tier, prompt)
    assert cached(first) == 0
    second = engines.whole(SECOND, prompt, MAX_TOKENS)
    assert cached(second) == min(length // BLOCK * BLOCK, length - 1)
    assert second.tokens == first.tokens == engines.whole(PLAIN, prompt, MAX_TOKENS).tokens


def test_an_engine_that_starts_later_loads_what_was_computed_before_it(engines, tier):
    prompt = new_prompt(700)
    first = stored(engines, tier, prompt)
    engines.start(engines.spec(LATE, KvSpec(tier_address=tier.address), HASHES))
    engines.wait_ready(LATE)
    late = engines.whole(LATE, prompt, MAX_TOKENS)
    assert cached(late) == 672
    assert late.tokens == first.tokens


def test_an_engine_loads_again_what_its_own_cache_has_lost(engines, tier):
    prompt = new_prompt(300)
    first = stored(engines, tier, prompt)
    assert any(engines.cache_is_free(FIRST) for _ in range(500))
    again = engines.whole(FIRST, prompt, MAX_TOKENS)
    assert (cached(again), again.tokens) == (288, first.tokens)


def test_a_shared_beginning_is_loaded_and_the_rest_computed_and_stored(engines, tier):
    beginning = new_prompt(320)
    stored(engines, tier, [*beginning, *new_prompt(70)])
    prompt = [*beginning, *new_prompt(130)]
    before = len(tier.index)
    second = engines.whole(SECOND, prompt, MAX_TOKENS)
    assert cached(second) == 320
    assert second.tokens == engines.whole(PLAIN, prompt, MAX_TOKENS).tokens
    tier.wait_until(lambda: len(tier.index) == before + 4)


def test_a_second_turn_finds_the_answer_of_the_first(engines, tier):
    prompt = new_prompt(100)
    first = stored(engines, tier, prompt, max_tokens=100)
    turn = [*prompt, *first.tokens[:-1], *new_prompt(20)]
    second = engines.whole(SECOND, turn, MAX_TOKENS)
    assert cached(second) == 192
    assert second.tokens == engines.whole(PLAIN, turn, MAX_TOKENS).tokens


def test_only_what_is_missing_locally_is_loaded(engines, tier):
    beginning = new_prompt(320)
    engines.whole(SECOND, beginning, 1)
    prompt = [*beginning, *new_prompt(320)]
    stored_first = engines.whole(FIRST, prompt, MAX_TOKENS)
    tier.wait_until(lambda: tier.heard[KvReserve] is not None)
    second = engines.whole(SECOND, prompt, MAX_TOKENS)
    assert second.prefill["num_local_cached_tokens"] == 320
    assert second.tokens == stored_first.tokens


def test_prompts_that_want_log_probabilities_are_computed(engines, tier):
    prompt = new_prompt(200)
    stored(engines, tier, prompt)
    answer = engines.finish(engines.ask(SECOND, prompt, max_tokens=MAX_TOKENS, prompt_logprobs=1))
    assert cached(answer) == 0


def test_the_listener_is_told_with_every_question(engines, tier):
    prompt = new_prompt(100)
    engines.finish(engines.add(FIRST, prompt, 1, nodeserve_listener="batch"))
    tier.wait_until(lambda: tier.heard[KvLookup].listener == "batch")
    tier.wait_until(lambda: tier.heard[KvReserve].listener == "batch")


def test_slots_that_changed_since_they_were_found_are_not_believed(engines, tier):
    prompt = new_prompt(600)
    first = stored(engines, tier, prompt)
    last = max(tier.index.values())
    tier.directory.write(last - 3, SlotState.READY, b"another" + bytes(25), tenant=0)
    before = tier_stats(engines, SECOND)
    second = engines.whole(SECOND, prompt, MAX_TOKENS)
    assert (cached(second), second.tokens) == (0, first.tokens)
    after = tier_stats(engines, SECOND)
    assert after["load_failures"] == before["load_failures"] + 1
    assert after["loads"] == before["loads"] + 1  # it is not tried again


def test_slots_that_are_not_there_are_not_believed(engines, tier):
    prompt = new_prompt(100)
    first = stored(engines, tier, prompt)
    for key, slot in list(tier.index.items())[-3:]:
        tier.index[key] = slot + 10**6
    second = engines.whole(SECOND, prompt, MAX_TOKENS)
    assert (cached(second), second.tokens) == (0, first.tokens)


def test_a_silent_block_manager_costs_hits_and_nothing_else(engines, tier):
    prompt = new_prompt(500)
    first = stored(engines, tier, prompt)
    tier.silent = True
    answers = [engines.whole(SECOND, prompt, MAX_TOKENS) for _ in range(2)]
    assert [answer.tokens for answer in answers] == [first.tokens] * 2
    assert cached(answers[0]) == 0
    assert tier_stats(engines, SECOND)["unanswered"] >= 1


def test_blocks_that_get_no_slot_are_let_go(engines, tier):
    tier.stores = False
    before = len(tier.index)
    engines.whole(FIRST, new_prompt(400), MAX_TOKENS)
    tier.wait_until(lambda: tier_stats(engines, FIRST)["held_blocks"] == 0)
    assert len(tier.index) == before


def test_an_abort_amid_everything_leaves_nothing_held(engines, tier):
    prompt = new_prompt(1900)
    stored(engines, tier, prompt)
    for generation in (SECOND, FIRST):
        request = engines.add(generation, prompt, 500)
        engines.abort(generation, request)
        request = engines.add(generation, [*prompt[:1000], *new_prompt(500)], 500)
        engines.started(request)
        engines.abort(generation, request)


def test_a_handoff_that_cannot_be_pulled_is_looked_up_in_the_tier(engines, tier):
    prompt = new_prompt(640)
    expected = engines.whole(PLAIN, prompt, MAX_TOKENS).tokens
    before = len(tier.index)
    handoff = engines.prefill(FIRST, prompt)
    tier.wait_until(lambda: len(tier.index) == before + 20)
    broken = handoff | {"slot": handoff["slot"] + 1}
    answer = engines.decode(SECOND, prompt, MAX_TOKENS, broken)
    engines.release(handoff)
    assert answer.tokens == expected
    assert tier_stats(engines, SECOND)["loaded_tokens"] >= 639


def test_a_burst_that_passes_what_stores_may_hold_is_served_all_the_same(engines, tier):
    prompts = [new_prompt(1900) for _ in range(6)]  # 360 blocks at once, of 512
    requests = [engines.add(FIRST, prompt, MAX_TOKENS) for prompt in prompts]
    answers = [engines.finish(request).tokens for request in requests]
    for prompt, tokens in zip(prompts, answers, strict=True):
        assert engines.whole(SECOND, prompt, MAX_TOKENS).tokens == tokens


def test_an_engine_measures_how_fast_blocks_come_from_the_tier(engines, tier):
    found = engines.call(SECOND, "nodeserve_probe_tier")
    assert found.pop("transport") == "host"
    assert set(found) == {"latency_us", "gbps_64kb", "gbps_256kb", "gbps_64mb"}
    assert all(figure > 0 for figure in found.values())
    assert "has no host tier" in engines.call(PLAIN, "nodeserve_probe_tier")["error"]
    assert "tier_probe" in engines.ready[SECOND].features
    assert "tier_probe" not in engines.ready[PLAIN].features
