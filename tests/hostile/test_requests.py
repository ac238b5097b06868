"""Whatever a client sends: the answer is the one on record, and the next request is served."""

import json
import socket
import statistics
import time
from collections.abc import Iterator

import pytest

from nodeserve.config.node import GatewayKind
from nodeserve.wire.control import StatusReply
from tests.hostile.conftest import Slow, Target
from tests.hostile.recorded import DEVIATIONS
from tests.hostile.requests import ATTACKS, SLOW, Attack
from tests.hostile.sending import asked, exchange, get, post

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

GOOD = asked({"prompt": "Is there anybody out there?", "max_tokens": 2})
SOON_S = 1.0
GATEWAYS = pytest.mark.parametrize("gateway", list(GatewayKind), ids=str)


@pytest.fixture(scope="module")
def soon_s(target: Target) -> float:
    """What a request may take that follows an attack: a second, on a machine that allows it."""
    times = [ask_nicely(target, gateway) for gateway in GatewayKind for _ in range(5)]
    return max(SOON_S, 20 * statistics.median(times))


def ask_nicely(target: Target, gateway: GatewayKind) -> float:
    """Return how long a good request takes, in seconds."""
    began_s = time.monotonic()
    outcome = exchange(target.socket(gateway), [GOOD], patience_s=60.0)
    assert outcome.status == 200, outcome
    return time.monotonic() - began_s


@pytest.fixture(scope="module", autouse=True)
def processes(target: Target) -> Iterator[None]:
    """Nobody was replaced in the end."""
    before = target.pids()
    yield
    assert target.pids() == before


def verdict(gateway: GatewayKind, attack: Attack) -> frozenset[str]:
    """Return what this gateway may say."""
    recorded = DEVIATIONS.get((gateway, attack.name))
    return attack.right if recorded is None else frozenset({recorded})


@GATEWAYS
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.row}-{attack.name}"[:60])
def test_an_attack_ends_as_recorded_and_the_next_request_is_served(
    target: Target, slow: Slow, soon_s: float, gateway: GatewayKind, attack: Attack
) -> None:
    outcome = target.send(gateway, attack)

    assert ask_nicely(target, gateway) < soon_s
    assert str(outcome) in verdict(gateway, attack), outcome.body[:300]
    assert b"Traceback" not in outcome.body


@GATEWAYS
def test_idle_connections_keep_nobody_out(
    target: Target, soon_s: float, gateway: GatewayKind
) -> None:
    path, clients = target.socket(gateway), [socket.socket(socket.AF_UNIX) for _ in range(500)]
    for client in clients:
        client.connect(str(path))
    assert ask_nicely(target, gateway) < soon_s
    for client in clients:
        client.close()


@GATEWAYS
def test_many_schemas_are_served_one_after_the_other(
    target: Target, soon_s: float, gateway: GatewayKind
) -> None:
    for number in range(30):
        schema = {"type": "object", "properties": {f"key{number}": {"enum": ["a", "b"]}}}
        kind = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        said = [{"role": "user", "content": "Say it"}]
        body = {"messages": said, "max_tokens": 2, "response_format": kind}
        outcome = exchange(
            target.socket(gateway), [asked(body, "/v1/chat/completions")], patience_s=60.0
        )
        assert outcome.status == 200
    assert ask_nicely(target, gateway) < soon_s


@GATEWAYS
def test_clients_that_read_nothing_hold_up_nobody_and_leave_nothing(
    target: Target, soon_s: float, gateway: GatewayKind
) -> None:
    words = {"prompt": "A long story:", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    clients = [socket.socket(socket.AF_UNIX) for _ in range(8)]
    for client in clients:
        client.connect(str(target.socket(gateway)))
        client.sendall(post("/v1/completions", json.dumps(words).encode()))
    target.node.wait_until(lambda status: running(status) >= 8)
    assert ask_nicely(target, gateway) < soon_s
    for client in clients:
        client.close()
    target.node.wait_until(lambda status: running(status) == 0)


def running(status: StatusReply) -> int:
    assert status.requests is not None
    return status.requests.running_requests + status.requests.queued_requests


@GATEWAYS
def test_a_request_in_pieces_is_a_request(target: Target, gateway: GatewayKind) -> None:
    pieces = [GOOD[at : at + 40] for at in range(0, len(GOOD), 40)]
    assert exchange(target.socket(gateway), pieces, pause_s=0.005).status == 200
    assert exchange(target.socket(gateway), [get("/health")]).status == 200


@GATEWAYS
@pytest.mark.parametrize("attack", SLOW, ids=lambda attack: f"{attack.row}-{attack.name}")
def test_a_request_that_never_comes_ends_as_recorded(
    slow: Slow, gateway: GatewayKind, attack: Attack
) -> None:
    assert str(slow[gateway, attack.name].result(60)) in verdict(gateway, attack)
