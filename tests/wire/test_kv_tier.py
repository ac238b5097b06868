import pytest

from nodeserve.wire import kv_tier
from nodeserve.wire.kv_tier import ABSENT, KvFound, KvLookup, KvWho

KEYS = bytes(range(64))


def test_what_is_said_is_heard():
    lookup = KvLookup(call_id=7, listener="api", keys=KEYS, deadline_s=0.5)
    assert kv_tier.decode_request(kv_tier.encode_message(lookup)) == lookup
    found = KvFound(call_id=7, slots=kv_tier.join_slots([3, ABSENT]), num_pending=1)
    assert kv_tier.decode_answer(kv_tier.encode_message(found)) == found


def test_engines_and_block_manager_do_not_understand_their_own_kind():
    with pytest.raises(ValueError, match="request"):
        kv_tier.decode_request(kv_tier.encode_message(KvWho()))


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x81\xa4type\xa5KvWho" * 2, b"\xff" * 100])
def test_garbage_is_a_value_error(frame):
    for decode in (kv_tier.decode_request, kv_tier.decode_answer):
        with pytest.raises(ValueError, match="cannot be read"):
            decode(frame)


def test_slots_and_keys_come_back_as_they_went():
    assert kv_tier.split_slots(kv_tier.join_slots([0, 1, ABSENT])) == [0, 1, ABSENT]
    assert kv_tier.split_keys(KEYS) == [KEYS[:32], KEYS[32:]]
    assert kv_tier.split_keys(b"") == []


def test_part_of_an_item_is_refused():
    with pytest.raises(ValueError, match="whole number"):
        kv_tier.split_slots(b"abc")
    with pytest.raises(ValueError, match="whole number"):
        kv_tier.split_keys(KEYS[:-1])
