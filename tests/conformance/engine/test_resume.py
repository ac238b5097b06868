"""A request goes on where another engine of its kind stopped, on whichever engine."""

import pytest

from nodeserve.wire.engine_core import RESUMED
from nodeserve.wire.kinds import RESUME
from tests.conformance.engine.conftest import DECODE, PREFILL
from tests.conformance.engine.test_engine import LENGTH, prompt

STOP, ABORTED, FAILED = 0, 2, 3


def resumed(node, generation, tokens, **sampling):
    return node.ask(generation, sampling.pop("prompt"), extra_args={RESUMED: tokens}, **sampling)


def test_engines_say_that_they_can(node):
    assert RESUME in node.ready[PREFILL].features


@pytest.mark.parametrize("count", [1, 6, 13, 64, 99])
def test_outputs_are_what_comes_after_the_restored_tokens(node, count):
    whole = node.whole(PREFILL, prompt(40), 100).tokens
    answer = node.finish(
        resumed(node, DECODE, whole[:count], prompt=prompt(40), max_tokens=100, logprobs=1)
    )
    assert answer.tokens == whole[count:]
    assert answer.finish == LENGTH
    assert all(output["new_logprobs"] for output in answer.outputs)


def test_resuming_where_everything_is_cached_already_is_no_different(node):
    whole = node.whole(PREFILL, prompt(41), 120).tokens
    answer = node.finish(resumed(node, PREFILL, whole[:90], prompt=prompt(41), max_tokens=120))
    assert answer.tokens == whole[90:]


def test_prompt_is_accounted_for_once(node):
    whole = node.whole(PREFILL, prompt(42), 20).tokens
    leg = resumed(
        node, DECODE, whole[:5], prompt=prompt(42), max_tokens=20, prompt_logprobs=1, logprobs=0
    )
    answer = node.finish(leg)
    assert answer.tokens == whole[5:]
    assert answer.prefill is None
    assert all(output["new_prompt_logprobs_tensors"] is None for output in answer.outputs)


@pytest.mark.parametrize("nothing", [None, []])
def test_nothing_to_restore_is_a_new_request(node, nothing):
    whole = node.whole(DECODE, prompt(43), 9)
    answer = node.finish(resumed(node, DECODE, nothing, prompt=prompt(43), max_tokens=9))
    assert answer.tokens == whole.tokens
    assert answer.prefill["num_prompt_tokens"] == 100


def test_stop_token_ends_a_resumed_request(node):
    whole = node.whole(PREFILL, prompt(44), 60).tokens
    stop = next(t for t in whole[20:] if t not in whole[:20])
    cut = whole.index(stop) + 1
    sampling = {"max_tokens": 60, "stop_token_ids": [stop], "_all_stop_token_ids": [stop]}
    answer = node.finish(resumed(node, DECODE, whole[:7], prompt=prompt(44), **sampling))
    assert (answer.tokens, answer.finish) == (whole[7:cut], STOP)
    assert answer.outputs[-1]["stop_reason"] == stop


@pytest.mark.parametrize(
    ("limits", "finish", "stop_reason"),
    [
        ({"max_tokens": 3}, LENGTH, None),
        ({"max_tokens": 2}, LENGTH, None),
        ({"max_tokens": 9, "stop_token_ids": [22], "_all_stop_token_ids": [22]}, STOP, 22),
    ],
)
def test_request_that_was_complete_already_ends_at_once(node, limits, finish, stop_reason):
    answer = node.finish(resumed(node, DECODE, [20, 21, 22], prompt=prompt(45), **limits))
    assert (answer.tokens, answer.finish) == ([], finish)
    assert answer.outputs[-1]["stop_reason"] == stop_reason


@pytest.mark.parametrize("garbage", ["x", 5, [1.5], ["a"], {"a": 1}])
def test_what_is_no_list_of_tokens_fails_the_one_request(node, garbage):
    answer = node.finish(resumed(node, DECODE, garbage, prompt=prompt(46), max_tokens=9))
    assert (answer.tokens, answer.finish) == ([], FAILED)
    assert len(node.whole(DECODE, prompt(46), 9).tokens) == 9


def test_resumed_request_is_aborted_like_any_other(node):
    whole = node.whole(PREFILL, prompt(47), 10).tokens
    leg = resumed(node, DECODE, whole, prompt=prompt(47), max_tokens=1900)
    node.started(leg)
    node.abort(DECODE, leg)
    node.stats(DECODE)
    assert node.answers[leg].finish in {None, ABORTED}


def test_resumed_request_takes_a_handoff_as_well(node):
    whole = node.whole(PREFILL, prompt(48), 30).tokens
    assert node.cache_is_free(DECODE)
    handoff = node.prefill(PREFILL, prompt(48))
    extra = {RESUMED: whole[:6], "kv_transfer_params": handoff}
    answer = node.finish(node.ask(DECODE, prompt(48), max_tokens=30, extra_args=extra))
    assert answer.tokens == whole[6:]
    node.release(handoff)
