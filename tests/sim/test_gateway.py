"""Claims about clients: whatever they are sent is held against what they must get."""

import pytest

from nodeserve.engine.simulated.wire import FINISH_LENGTH, TOKENS, end_row, new_row
from nodeserve.ids import Generation
from nodeserve.sim.gateway import Client, SimGateway
from nodeserve.sim.node import SimNode
from nodeserve.sim.story import RuleBrokenError
from nodeserve.wire.codec import encode
from tests.sim.plans import PAIR, request


@pytest.fixture
def gateway() -> SimGateway:
    return SimGateway(SimNode(PAIR), "gateway-0", 0, Generation(5))


def say(gateway: SimGateway, wire_id: str, tokens: list[int], finish: int | None = None) -> None:
    row = new_row(wire_id, 0) if finish is None else end_row(wire_id, finish)
    row[TOKENS] = tokens
    gateway.on_outputs([encode([0, [row], None, 1.0])])


def test_an_answer_in_pieces_is_whole(gateway: SimGateway) -> None:
    client = Client(request())
    gateway.take(client)
    say(gateway, "c0", client.expected[:3])
    say(gateway, "c0", client.expected[3:], FINISH_LENGTH)
    assert client.ending == "answered"


@pytest.mark.parametrize(
    ("first", "second"), [((0, 3), (2, 5)), ((0, 3), (4, 5)), ((1, 2), (2, 3))]
)
def test_tokens_that_come_twice_or_are_missing_are_noticed(
    gateway: SimGateway, first: tuple[int, int], second: tuple[int, int]
) -> None:
    client = Client(request())
    gateway.take(client)
    with pytest.raises(RuleBrokenError, match="tokens are contiguous"):  # noqa: PT012
        for start, end in (first, second):
            say(gateway, "c0", client.expected[start:end])


def test_an_answer_that_ends_early_is_noticed(gateway: SimGateway) -> None:
    client = Client(request())
    gateway.take(client)
    with pytest.raises(RuleBrokenError, match="after 3 of 8 tokens"):
        say(gateway, "c0", client.expected[:3], FINISH_LENGTH)


def test_outputs_for_nobody_are_noticed_and_late_ones_for_who_left_are_not(
    gateway: SimGateway,
) -> None:
    client = Client(request(abort_after=3))
    gateway.take(client)
    say(gateway, "c0", client.expected[:3])
    assert client.ending == "aborted"
    say(gateway, "c0", client.expected[3:4])
    with pytest.raises(RuleBrokenError, match="nobody asked"):
        say(gateway, "c1", [1])


def test_a_gateway_that_is_told_to_end_lets_its_clients_finish(gateway: SimGateway) -> None:
    client = Client(request())
    gateway.take(client)
    gateway.terminate()
    assert not gateway.node.queue.run_next()
    say(gateway, "c0", client.expected, FINISH_LENGTH)
    assert gateway.node.queue.run_next()
    assert not gateway.alive


def test_clients_of_a_dead_gateway_are_cut_off(gateway: SimGateway) -> None:
    client = Client(request())
    gateway.take(client)
    gateway.exit(137, "was killed")
    assert client.ending == "cut off"
