"""What a prefill leg tells a decode leg, and when it is not believed."""

import msgspec
import pytest

from nodeserve.engine.vllm import handoff as handoffs
from nodeserve.engine.vllm.handoff import Handoff, PoolDescription
from nodeserve.errors import PeerError

HANDOFF = Handoff(
    engine=3,
    lease_id=9,
    num_tokens=65,
    num_bytes=1024,
    block_size=32,
    blocks=(4, 5, 9),
    slot=0,
    table={"transport": "shared_memory", "pid": 1},
    pools=(PoolDescription(handle={"transport": "shared_memory"}, geometry={"places": []}),),
)


def test_a_handoff_survives_the_wire_as_plain_types() -> None:
    params = handoffs.to_params(HANDOFF)
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(params))
    assert received["do_remote_prefill"] is True
    assert {"engine", "lease_id", "num_tokens", "num_bytes"} < received.keys()
    assert handoffs.from_params(received, num_tokens=65, block_size=32) == HANDOFF


def test_what_vllm_adds_to_the_params_is_passed_over() -> None:
    params = {**handoffs.to_params(HANDOFF), "remote_prefill_cached_tokens": 0}
    assert handoffs.from_params(params, num_tokens=70, block_size=32) == HANDOFF


@pytest.mark.parametrize(
    ("change", "num_tokens", "block_size"),
    [
        ({}, 64, 32),
        ({}, 65, 16),
        ({"blocks": [4, 5]}, 65, 32),
        ({"num_tokens": 0, "blocks": []}, 65, 32),
        ({"block_size": 0}, 65, 0),
        ({"lease_id": "nine"}, 65, 32),
        ({"pools": None}, 65, 32),
    ],
)
def test_a_handoff_of_something_else_is_refused(change, num_tokens, block_size) -> None:
    params = {**handoffs.to_params(HANDOFF), **change}
    with pytest.raises(PeerError, match="the prompt is computed here"):
        handoffs.from_params(params, num_tokens=num_tokens, block_size=block_size)
