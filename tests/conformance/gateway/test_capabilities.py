"""One API over both gateways and both layouts, with equal answers."""

import pytest

from nodeserve.config.node import GatewayKind
from tests.conformance.gateway.answers import differences, gist, stable
from tests.conformance.gateway.capabilities import CAPABILITIES, Capability
from tests.conformance.gateway.conftest import Nodes

pytestmark = pytest.mark.vllm

each_capability = pytest.mark.parametrize(
    "capability", CAPABILITIES, ids=lambda capability: f"{capability.group}-{capability.name}"
)


def is_refusal(status: int) -> bool:
    return 400 <= status < 500


@each_capability
def test_one_worker_and_prefill_and_decode_answer_alike(
    gateway: GatewayKind, capability: Capability, nodes: Nodes
) -> None:
    one, two = nodes(gateway, "aggregated"), nodes(gateway, "1p1d")
    (status, answer), (other_status, other) = one.ask(capability), two.ask(capability)

    if gateway not in capability.gateways:
        assert is_refusal(status), answer
        assert is_refusal(other_status), other
        assert one.works()
        assert two.works()
        return
    assert (status, other_status) == (200, 200), (answer, other)
    assert capability.holds(answer), answer
    if capability.path == "/metrics":
        return
    if isinstance(answer, list):
        answer, other = gist(answer), gist(other)
    assert differences(stable(answer), stable(other)) == []


@pytest.mark.parametrize(
    "capability",
    [row for row in CAPABILITIES if row.generates and len(row.gateways) == len(GatewayKind)],
    ids=lambda capability: f"{capability.group}-{capability.name}",
)
def test_both_gateways_answer_alike(capability: Capability, nodes: Nodes) -> None:
    (_, python), (_, rust) = (nodes(kind, "aggregated").ask(capability) for kind in GatewayKind)

    assert differences(gist(python), gist(rust)) == []


STREAMS = [
    (kind, row)
    for row in CAPABILITIES
    for kind in sorted(row.gateways)
    if row.body is not None and row.body.get("stream")
]


@pytest.mark.parametrize(
    ("kind", "capability"), STREAMS, ids=[f"{kind}-{row.group}-{row.name}" for kind, row in STREAMS]
)
def test_a_stream_says_what_the_whole_answer_says(
    kind: GatewayKind, capability: Capability, nodes: Nodes
) -> None:
    node = nodes(kind, "1p1d")
    assert capability.body is not None
    streaming = {"stream", "stream_options"}
    whole = {key: value for key, value in capability.body.items() if key not in streaming}

    status, answer = node.send(capability.path, whole)

    assert status == 200
    assert differences(gist(answer), gist(node.ask(capability)[1])) == []
