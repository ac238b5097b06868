import pytest

from nodeserve.kv.block_hash import hash_blocks, root_seed
from nodeserve.kv.engine_hash_map import EngineHashMap


@pytest.fixture
def hashes():
    return EngineHashMap(max_blocks=100)


def test_stored_blocks_get_the_hashes_of_the_same_prompt(hashes):
    prompt = list(range(12))
    assert hashes.stored([b"a", b"b"], None, prompt[:8], 4) == hash_blocks(prompt[:8], 4)
    assert hashes.stored([b"c"], b"b", prompt[8:], 4) == hash_blocks(prompt, 4)[2:]


def test_engine_hashes_may_be_integers(hashes):
    assert hashes.stored([7], None, [1, 2], 2) == hash_blocks([1, 2], 2)
    assert hashes.removed([7]) == hash_blocks([1, 2], 2)


def test_blocks_below_an_unknown_parent_are_counted_and_left_out(hashes):
    assert hashes.stored([b"b", b"c"], b"lost", [1, 2, 3, 4], 2) == ()
    assert hashes.untranslated_blocks == 2
    assert hashes.removed([b"b"]) == ()


@pytest.mark.parametrize("tokens", [[1, 2, 3], [1, 2, 3, 4, 5, 6]])
def test_an_event_whose_tokens_do_not_pair_with_its_hashes_is_left_out(hashes, tokens):
    assert hashes.stored([b"a", b"b"], None, tokens, 2) == ()
    assert hashes.untranslated_blocks == 2


def test_an_event_whose_extra_keys_do_not_pair_with_its_hashes_is_left_out(hashes):
    assert hashes.stored([b"a", b"b"], None, [1, 2, 3, 4], 2, extra_keys=[None]) == ()


def test_a_block_is_gone_with_its_last_copy(hashes):
    ours = hashes.stored([b"a"], None, [1, 2], 2)
    assert hashes.stored([b"a"], None, [1, 2], 2) == ours
    assert hashes.removed([b"a"]) == ()
    assert hashes.removed([b"a"]) == ours
    assert len(hashes) == 0


def test_a_cleared_map_knows_nothing(hashes):
    hashes.stored([b"a"], None, [1, 2], 2)
    hashes.cleared()
    assert hashes.removed([b"a"]) == ()


def test_adapter_and_salt_are_found_where_vllm_puts_them(hashes):
    tokens = [1, 2, 3, 4]
    lora = hashes.stored(
        [b"a", b"b"], None, tokens, 2, lora_name="x", extra_keys=[("x", "salt"), ("x",)]
    )
    assert lora == hash_blocks(tokens, 2, root_seed("x", "salt"))
    salted = hashes.stored([b"c", b"d"], None, tokens, 2, extra_keys=[["salt"], None])
    assert salted == hash_blocks(tokens, 2, root_seed(None, "salt"))
    plain = hashes.stored([b"e"], None, tokens[:2], 2, lora_name="x", extra_keys=[("x",)])
    assert plain == hash_blocks(tokens[:2], 2, root_seed("x"))


def test_a_block_with_an_image_matches_no_text(hashes):
    ours = hashes.stored([b"a"], None, [1, 2], 2, extra_keys=[(["image", 0],)])
    assert ours != hash_blocks([1, 2], 2)
    other = hashes.stored([b"b"], None, [1, 2], 2, extra_keys=[(["other", 0],)])
    assert other != ours


def test_past_its_limit_the_oldest_are_forgotten():
    hashes = EngineHashMap(max_blocks=2)
    hashes.stored([b"a", b"b", b"c"], None, [1, 2, 3], 1)
    assert len(hashes) == 2
    assert hashes.removed([b"a"]) == ()
    assert hashes.stored([b"d"], b"a", [4], 1) == ()
