import msgspec
import pytest

from nodeserve.engine.simulated import wire
from nodeserve.engine.simulated.sequence import Sequence
from nodeserve.kv.block_hash import hash_blocks, root_seed
from nodeserve.wire.engine_core import RESUMED


@pytest.fixture
def make(request_with, vocabulary):
    def make_sequence(prompt, **sampling):
        request = request_with("a", prompt, **sampling)
        return Sequence(request, vocabulary, max_model_len=100, order=0)

    return make_sequence


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "limit"), [(10, 20, 20), (90, 20, 10), (10, None, 90)]
)
def test_limit_is_max_tokens_or_what_is_left_of_the_model_length(
    make, prompt_tokens, max_tokens, limit
):
    assert make(list(range(prompt_tokens)), max_tokens=max_tokens).limit == limit


@pytest.mark.parametrize(
    ("start", "end", "tokens"),
    [(0, 2, [1, 2]), (1, 5, [2, 3, 70, 71]), (3, 5, [70, 71]), (4, 6, [71, 72])],
)
def test_known_tokens_run_from_the_prompt_into_the_output(make, start, end, tokens):
    sequence = make([1, 2, 3])
    sequence.tokens = [70, 71, 72]
    assert sequence.known_tokens(start, end) == tokens


def test_block_hashes_are_those_of_the_router_whenever_they_are_made(make):
    sequence = make([1, 2, 3])
    sequence.tokens = [70, 71, 72]
    sequence.hash_up_to(1, 2)
    sequence.hash_up_to(3, 2)
    assert tuple(sequence.hashes) == hash_blocks([1, 2, 3, 70, 71, 72], 2)


def test_salt_starts_another_chain(make):
    sequence = make([1, 2], salt="tenant")
    sequence.hash_up_to(1, 2)
    assert tuple(sequence.hashes) == hash_blocks([1, 2], 2, root_seed(None, "tenant"))


def test_logprobs_name_the_sampled_token_first_and_as_many_others_as_asked(make):
    sequence = make([1, 2], logprobs=3)
    row = wire.new_row("a", 400)
    sequence.add_logprobs(row)
    ids, values, _, _ = row[wire.LOGPROBS]
    assert ids[1] == values[1] == [1, 4]
    assert ids[2].data[:4] == ids[2].data[4:8] == (400).to_bytes(4, "little")


def test_row_of_who_did_not_ask_has_no_logprobs(make):
    row = wire.new_row("a", 400)
    make([1, 2]).add_logprobs(row)
    make([1, 2]).add_prompt_logprobs(row)
    assert row == ["a", [400]]


def test_resumed_sequence_stands_behind_its_restored_tokens(make):
    whole = make([1, 2], max_tokens=90)
    for _ in range(2):
        whole.extend()
    resumed = make([1, 2], max_tokens=90, extra_args={RESUMED: whole.tokens[:70]})
    assert (resumed.emitted, resumed.num_tokens, resumed.is_complete) == (70, 72, False)
    assert resumed.tokens == whole.tokens
    assert resumed.known_tokens(0, 72) == [1, 2, *whole.tokens[:70]]


@pytest.mark.parametrize(
    ("limits", "finish", "stop_reason"),
    [
        ({"max_tokens": 2}, wire.FINISH_LENGTH, None),
        ({"max_tokens": 9, "stop_token_ids": [71]}, wire.FINISH_STOP, 71),
    ],
)
def test_restored_tokens_may_complete_a_sequence(make, limits, finish, stop_reason):
    sequence = make([1, 2], extra_args={RESUMED: [70, 71]}, **limits)
    row = wire.end_row("a", wire.FINISH_LENGTH)
    sequence.add_end(row)
    assert sequence.is_complete
    assert (row[wire.FINISH_REASON], row[wire.STOP_REASON]) == (finish, stop_reason)


@pytest.mark.parametrize("garbage", [5, "x", ["a"], [1.5]])
def test_what_are_no_tokens_is_refused(make, garbage):
    with pytest.raises(msgspec.ValidationError):
        make([1, 2], extra_args={RESUMED: garbage})
