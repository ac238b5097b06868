import pytest

from nodeserve.engine.simulated.tokens import CHUNK_TOKENS, Vocabulary, stream_key


def test_same_prompt_and_seed_give_the_same_tokens(vocabulary):
    assert vocabulary.chunk(stream_key([1, 2], 5), 3) == vocabulary.chunk(stream_key([1, 2], 5), 3)


def test_prompt_seed_and_position_each_change_the_tokens(vocabulary):
    chunks = [
        vocabulary.chunk(stream_key([1, 2], None), 0),
        vocabulary.chunk(stream_key([2, 1], None), 0),
        vocabulary.chunk(stream_key([1, 2], 0), 0),
        vocabulary.chunk(stream_key([1, 2], None), 1),
    ]
    assert len({tuple(chunk) for chunk in chunks}) == 4
    assert all(len(chunk) == CHUNK_TOKENS for chunk in chunks)


@pytest.mark.parametrize("vocab_size", [1, 6, 100, 264, 1024, 32_000, 200_000])
def test_tokens_are_in_the_vocabulary_and_never_special(vocab_size):
    special = {1, 2, 7, 500}
    vocabulary = Vocabulary(vocab_size, sorted(special))
    drawn = {token for index in range(50) for token in vocabulary.chunk(b"k", index)}
    assert max(drawn) < vocab_size
    assert not drawn & special
    assert drawn <= set(vocabulary.common)


def test_stream_is_the_same_in_every_process():
    vocabulary = Vocabulary(128_256, ())
    assert vocabulary.chunk(stream_key([1, 2, 3], None), 0)[:4] == [2137, 4473, 8073, 3874]
