"""Claims about what a simulated node goes through."""

import pytest

from nodeserve.sim.faults import FaultKind, PlannedListener
from nodeserve.sim.story import RuleBrokenError
from tests.sim.plans import fault, ran, request, told


def test_a_request_is_handed_over_and_answered() -> None:
    node = ran(request())
    assert [client.ending for client in node.clients] == ["answered"]
    assert told(node, "start leg", "kind prefill")
    assert told(node, "start leg", "kind decode", "lease id 1")
    assert told(node, "exit node: exit code 0")


def test_a_request_goes_on_when_its_worker_is_killed() -> None:
    node = ran(request(max_tokens=20), fault(FaultKind.KILL, "decode-1"))
    assert [client.ending for client in node.clients] == ["answered"]
    assert told(node, "worker lost")
    assert told(node, "kind whole")


def test_a_worker_that_hangs_is_found_and_replaced() -> None:
    node = ran(request(max_tokens=20), fault(FaultKind.HANG, "decode-1", 2.5))
    assert [client.ending for client in node.clients] == ["answered"]
    assert told(node, "process sick", "it makes no step")


def test_a_worker_that_takes_nothing_is_given_up() -> None:
    node = ran(
        request(),
        request(1, arrive_s=0.62, family=1),
        fault(FaultKind.MUTE, "prefill-0", 0.3, at_s=0.61),
    )
    assert [client.ending for client in node.clients] == ["answered", "answered"]
    assert told(node, "given up by the dispatcher", "its queue is full")


def test_a_dead_dispatcher_cuts_streams_off_and_the_next_one_serves() -> None:
    node = ran(
        request(max_tokens=20),
        request(1, arrive_s=0.7),
        fault(FaultKind.KILL, "dispatcher"),
    )
    assert [client.ending for client in node.clients] == ["cut off", "answered"]


def test_a_stuck_gateway_is_given_up() -> None:
    node = ran(request(max_tokens=20), fault(FaultKind.STUCK, "gateway-0", 3.0))
    assert [client.ending for client in node.clients] == ["cut off"]
    assert told(node, "process sick", "it has not read for 2 s")


def test_a_node_that_is_told_to_stop_ends_and_refuses_who_comes_later() -> None:
    node = ran(request(), request(1, arrive_s=0.7), fault(FaultKind.STOP_NODE, ""))
    assert [client.ending for client in node.clients] == ["answered", "refused"]


def test_a_client_that_goes_away_leaves_nothing() -> None:
    node = ran(request(abort_at_s=0.51), request(1, abort_after=3))
    assert [client.ending for client in node.clients] == ["aborted", "aborted"]


def test_who_waits_too_long_is_failed() -> None:
    listener = PlannedListener(max_running=1, queue_timeout_s=0.05)
    node = ran(request(), request(1), listeners=(listener,))
    assert [client.ending for client in node.clients] == ["answered", "failed"]


@pytest.mark.parametrize("kind", [FaultKind.DRAIN, FaultKind.RESTART, FaultKind.RESTART_NOW])
def test_operators_may_stop_a_worker_that_answers(kind: FaultKind) -> None:
    node = ran(request(max_tokens=20), fault(kind, "decode-1"))
    assert [client.ending for client in node.clients] == ["answered"]


def test_a_first_start_that_fails_ends_the_node_with_its_cause() -> None:
    node = ran(request(), fault(FaultKind.FAIL_NEXT_START, "decode-1", at_s=0.0))
    assert node.supervisor.ended is not None
    assert "it was made to fail" in str(node.supervisor.ended.reason)
    assert [client.ending for client in node.clients] == ["refused"]


def test_a_leap_of_the_clock_makes_what_was_due_late() -> None:
    node = ran(request(max_tokens=20), fault(FaultKind.LEAP, "", 30.0))
    assert [client.ending for client in node.clients] == ["answered"]
    assert node.queue.now_s() > 30.0


def test_messages_that_are_late_or_come_twice_change_no_answer() -> None:
    faults = [
        fault(kind, target, 0.3, at_s=0.3)
        for kind in (FaultKind.REPEAT, FaultKind.DELAY)
        for target in ("prefill-0", "decode-1", "dispatcher", "gateway-0")
    ]
    node = ran(request(max_tokens=20), *faults)
    assert [client.ending for client in node.clients] == ["answered"]


@pytest.mark.parametrize("name", ["dispatcher", "gateway-0", "forkserver"])
def test_what_died_too_often_is_started_by_the_operator(name: str) -> None:
    kills = [fault(FaultKind.KILL, name, at_s=0.5 + number / 5) for number in range(15)]
    node = ran(request(), request(1, arrive_s=3.8), *kills)
    assert node.clients[1].ending in {"answered", "cut off"}
    assert node.supervisor.ended is not None


def test_a_failure_that_nobody_decided_is_a_mistake() -> None:
    node = ran(request())
    dispatcher = node.dispatcher
    assert dispatcher is None  # it has ended with its node
    node.client_failed(node.clients[0])


def test_a_client_that_ends_twice_is_a_mistake() -> None:
    node = ran(request())
    with pytest.raises(RuleBrokenError, match="request 0: answered, then cut off"):
        node.clients[0].end("cut off")
