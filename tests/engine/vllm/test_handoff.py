"""What a prefill leg tells a decode leg, and when it is not believed."""

import msgspec
import pytest

from nodeserve.engine.vllm import handoff as handoffs
from nodeserve.engine.vllm.handoff import GroupBlocks, Handoff, PoolDescription
from nodeserve.errors import PeerError

HANDOFF = Handoff(
    engine=3,
    lease_id=9,
    num_tokens=65,
    num_bytes=1024,
    groups=(
        GroupBlocks(block_size=32, first=0, blocks=(4, 5, 9)),
        GroupBlocks(block_size=16, first=3, blocks=(7, 8)),
    ),
    slot=0,
    table={"transport": "shared_memory", "pid": 1},
    pools=(PoolDescription(handle={"transport": "shared_memory"}, geometry={"places": []}),),
)


def test_a_handoff_survives_the_wire_as_plain_types() -> None:
    params = handoffs.to_params(HANDOFF)
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(params))
    assert received["do_remote_prefill"] is True
    assert {"engine", "lease_id", "num_tokens", "num_bytes"} < received.keys()
    assert handoffs.from_params(received, num_tokens=65, num_groups=2) == HANDOFF


def test_what_vllm_adds_to_the_params_is_passed_over() -> None:
    params = {**handoffs.to_params(HANDOFF), "remote_prefill_cached_tokens": 0}
    assert handoffs.from_params(params, num_tokens=70, num_groups=2) == HANDOFF


def group(block_size, first, blocks):
    return {"block_size": block_size, "first": first, "blocks": blocks}


@pytest.mark.parametrize(
    ("change", "num_tokens", "num_groups"),
    [
        ({}, 64, 2),
        ({}, 65, 1),
        ({"groups": [group(32, 0, [4, 5, 9])]}, 65, 2),
        ({"groups": [group(32, 0, [4, 5])]}, 65, 1),
        ({"groups": [group(32, 1, [4, 5, 9])]}, 65, 1),
        ({"groups": [group(32, -1, [4, 5, 9, 9])]}, 65, 1),
        ({"groups": [group(0, 0, [])]}, 65, 1),
        ({"groups": [group(-32, 0, [])]}, 65, 1),
        ({"num_tokens": 0, "groups": [group(32, 0, [])]}, 65, 1),
        ({"lease_id": "nine"}, 65, 2),
        ({"pools": None}, 65, 2),
    ],
)
def test_a_handoff_of_something_else_is_refused(change, num_tokens, num_groups) -> None:
    params = {**handoffs.to_params(HANDOFF), **change}
    with pytest.raises(PeerError, match="the prompt is computed here"):
        handoffs.from_params(params, num_tokens=num_tokens, num_groups=num_groups)
