"""Claims about the ports that a simulated dispatcher is given."""

import pytest

from nodeserve.errors import PeerError
from nodeserve.ids import Generation
from nodeserve.sim.data_plane import EnginesPort, SimDispatcher
from nodeserve.sim.faults import FaultKind
from nodeserve.sim.node import SimNode
from tests.sim.plans import PAIR, fault, ran, request, told


def test_who_is_not_connected_cannot_be_sent_to() -> None:
    with pytest.raises(PeerError, match="nobody has that identity"):
        EnginesPort({}).send([b"\3\0", b"payload"])


def test_outputs_wait_while_they_are_paused_and_only_so_many() -> None:
    dispatcher = SimDispatcher(SimNode(PAIR), "dispatcher", Generation(2))
    ports = dispatcher.ports
    ports.pause()
    count = 0
    while ports.takes_outputs:
        ports.on_output([b"\xc1"])
        count += 1
        assert count < 100
    ports.resume()
    assert ports.takes_outputs


def test_a_timer_of_a_dead_process_does_not_come() -> None:
    node = SimNode(PAIR)
    dispatcher = SimDispatcher(node, "dispatcher", Generation(2))
    called: list[bool] = []
    dispatcher.ports.call_later(0.01, lambda: called.append(True))
    dispatcher.exit(137, "was killed")
    node.queue.after(0.02, lambda: None)
    while node.queue.now_s() < 0.02:
        node.queue.run_next()
    assert called == []


def test_a_gateway_that_did_not_read_for_a_while_gets_everything() -> None:
    node = ran(request(max_tokens=20), fault(FaultKind.STUCK, "gateway-0", 1.0))
    assert [client.ending for client in node.clients] == ["answered"]
    assert not told(node, "process sick")
