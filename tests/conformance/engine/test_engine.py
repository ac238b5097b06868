"""What every engine does on the wire, whichever it is."""

import msgspec
import pytest

from tests.conformance.engine.conftest import DECODE, PREFILL
from tests.support.vllm_node import VllmNode

LENGTH = 1


def prompt(start: int, length: int = 100) -> list[int]:
    """A prompt of bytes that no other test's begins like."""
    return [start, *[3 + (start * 31 + index * 7) % 240 for index in range(length - 1)]]


@pytest.fixture(autouse=True)
def clean(node: VllmNode):
    yield
    for generation in (PREFILL, DECODE):
        assert node.stats(generation)["leased"] == 0
        assert node.cache_is_free(generation)


def test_ready_says_the_same_on_the_wire_and_to_the_supervisor(node):
    ready = node.ready[PREFILL]
    told = msgspec.msgpack.decode(ready.ready)
    assert told["num_gpu_blocks"] == ready.num_gpu_blocks
    assert (told["block_size"], told["max_model_len"]) == (ready.block_size, ready.max_model_len)
    assert told["vllm_version"] == ready.fields.vllm_version
    assert ready.kv_block_bytes > 0


def test_field_names_are_one_set_for_all_engines(node):
    assert node.ready[PREFILL].fields == node.ready[DECODE].fields
    assert node.ready[PREFILL].fields.request[:2] == ("request_id", "prompt_token_ids")


def test_request_gets_max_tokens_and_ends_by_length(node):
    answer = node.whole(PREFILL, prompt(10), 20)
    assert (len(answer.tokens), answer.finish) == (20, LENGTH)


def test_same_request_gets_the_same_answer_on_both_engines(node):
    assert node.whole(PREFILL, prompt(11), 30).tokens == node.whole(DECODE, prompt(11), 30).tokens


def test_different_prompts_get_different_answers(node):
    assert node.whole(PREFILL, prompt(12), 30).tokens != node.whole(PREFILL, prompt(13), 30).tokens


def test_answers_do_not_depend_on_what_else_runs(node):
    alone = node.whole(PREFILL, prompt(14), 30).tokens
    others = [node.add(PREFILL, prompt(20 + index), 40) for index in range(4)]
    assert node.whole(PREFILL, prompt(14), 30).tokens == alone
    assert [len(node.finish(other).tokens) for other in others] == [40] * 4


def test_first_output_accounts_for_the_whole_prompt(node):
    prefill = node.whole(PREFILL, prompt(30), 2).prefill
    assert prefill["num_prompt_tokens"] == 100
    assert prefill["num_computed_tokens"] == 100


def test_second_prompt_with_a_prefix_reports_what_it_found(node):
    node.whole(PREFILL, prompt(31), 2)
    prefill = node.whole(PREFILL, [*prompt(31), 7, 8, 9], 2).prefill
    block_size = node.ready[PREFILL].block_size
    assert prefill["num_local_cached_tokens"] == 100 // block_size * block_size


def test_idle_engine_says_that_blocks_are_free_when_their_lease_ends(node):
    handoff = node.prefill(PREFILL, prompt(33))
    assert node.kv_usage[PREFILL] > 0
    node.release(handoff)
    node._receive_until(lambda: node.kv_usage[PREFILL] == 0)


def test_idle_engine_says_that_blocks_are_free_after_an_abort(node):
    leg = node.add(DECODE, prompt(34), 1500)
    node.started(leg)
    node.abort(DECODE, leg)
    node._receive_until(lambda: node.kv_usage[DECODE] == 0)


def test_decode_leg_says_what_one_engine_says(node):
    whole = node.whole(DECODE, prompt(32), 40).tokens
    assert node.cache_is_free(DECODE)
    before = node.stats(DECODE)
    handoff = node.prefill(PREFILL, prompt(32))
    answer = node.decode(DECODE, prompt(32), 40, handoff)
    assert answer.tokens == whole
    assert answer.prefill["num_external_cached_tokens"] >= 99
    after = node.stats(DECODE)
    assert after["loads"] == before["loads"] + 1
    assert after["load_bytes"] == before["load_bytes"] + handoff["num_bytes"]
    node.release(handoff)


def test_handoff_names_its_owner_and_its_size(node):
    handoff = node.prefill(PREFILL, prompt(33))
    assert handoff["do_remote_prefill"] is True
    assert (handoff["engine"], handoff["num_tokens"]) == (PREFILL, 100)
    ready = node.ready[PREFILL]
    assert handoff["num_bytes"] == -(-100 // ready.block_size) * ready.kv_block_bytes
    node.release(handoff)


def test_lease_pins_blocks_until_it_is_released(node):
    handoff = node.prefill(PREFILL, prompt(34))
    assert node.stats(PREFILL)["leased"] == 1
    assert not node.cache_is_free(PREFILL)
    node.release(handoff)
    assert node.stats(PREFILL)["leased"] == 0
    assert node.cache_is_free(PREFILL)


def test_each_handoff_has_a_lease_of_its_own(node):
    handoffs = [node.prefill(PREFILL, prompt(35)) for _ in range(2)]
    assert handoffs[0]["lease_id"] != handoffs[1]["lease_id"]
    for handoff in handoffs:
        node.release(handoff)


def test_lease_released_twice_is_no_failure(node):
    handoff = node.prefill(PREFILL, prompt(36))
    node.release(handoff)
    node.release(handoff)


def test_malformed_handoff_is_computed_here_and_counted(node):
    whole = node.whole(DECODE, prompt(37), 10).tokens
    assert node.cache_is_free(DECODE)
    before = node.stats(DECODE)["load_failures"]
    answer = node.decode(DECODE, prompt(37), 10, {"do_remote_prefill": True, "engine": "x"})
    assert answer.tokens == whole
    assert answer.prefill["num_external_cached_tokens"] == 0
    assert node.stats(DECODE)["load_failures"] == before + 1


def test_abort_frees_the_blocks(node):
    request = node.add(PREFILL, prompt(38), 1900)
    node.started(request)
    node.abort(PREFILL, request)
    assert node.stats(PREFILL)["leased"] == 0
    assert len(node.answers[request].tokens) < 1900


@pytest.mark.parametrize(
    ("method", "value"),
    [("get_supported_tasks", ["generate"]), ("is_sleeping", False)],
)
def test_what_front_ends_ask_is_answered(node, method, value):
    assert node.call(PREFILL, method) == value


def test_unknown_method_is_answered_with_a_failure(node):
    with pytest.raises(AssertionError, match="no_such_method"):
        node.call(PREFILL, "no_such_method")
