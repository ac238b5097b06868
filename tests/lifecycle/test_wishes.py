"""Restarts of what is no worker: the dispatcher, its gateways, and the fork servers."""

import pytest

from nodeserve.errors import RequestError
from nodeserve.lifecycle.messages import (
    KillProcess,
    ProcessReady,
    RestartAsked,
    StopAsked,
    TerminateProcess,
    TimeElapsed,
)
from nodeserve.lifecycle.process import Phase
from tests.lifecycle.living import Node, spawned


@pytest.fixture
def node():
    return Node().up()


def let_fail(node, name):
    """Let a process die until nobody starts it any more."""
    while node.phase(name) is not Phase.FAILED:
        if node.phase(name) is Phase.BACKOFF:
            node.tell(TimeElapsed(), at_s=node.life.slots[name].life.wake_at_s)
        node.exits(name)


def restart(node, name, *, immediately=False):
    return node.tell(RestartAsked(name, immediately))


@pytest.mark.parametrize("name", ["dispatcher", "gateway-api", "forkserver"])
def test_what_died_too_often_is_started_by_a_restart_and_may_die_as_often_again(node, name):
    let_fail(node, name)
    assert node.life.state != "ready"
    assert f"nodeserve restart {name}" in node.life.detail
    assert name in spawned(restart(node, name))
    assert node.phase(name) is Phase.STARTING
    assert node.life.slots[name].life.history.deaths_s == []


def test_a_node_without_a_dispatcher_cannot_serve_until_it_is_restarted(node):
    let_fail(node, "dispatcher")
    assert node.life.state == "unavailable"
    restart(node, "dispatcher")
    node.tell(ProcessReady(node.generation("dispatcher")))
    for name in ("prefill-0", "decode-0"):
        assert node.life.slots[name].attached
    node.exits("gateway-api")
    node.tell(TimeElapsed(), at_s=node.now_s + 60.0)
    node.tell(ProcessReady(node.generation("gateway-api")))
    assert node.life.state == "ready"


def test_gateways_that_gave_up_without_a_dispatcher_come_back_with_it(node):
    let_fail(node, "dispatcher")
    let_fail(node, "gateway-api")
    assert spawned(restart(node, "dispatcher")) == ["dispatcher", "gateway-api"]


def test_a_serving_dispatcher_is_restarted_only_at_once_and_its_gateways_with_it(node):
    with pytest.raises(RequestError, match=r"dispatcher is ready, .* --now"):
        restart(node, "dispatcher")
    assert node.phase("dispatcher") is Phase.READY
    commands = restart(node, "dispatcher", immediately=True)
    assert commands == [TerminateProcess(node.generation("dispatcher"))]
    gateway = node.generation("gateway-api")
    commands = node.exits("dispatcher", exit_code=0)
    assert KillProcess(gateway) in commands
    assert spawned(commands) == ["dispatcher"]
    assert spawned(node.exits("gateway-api")) == ["gateway-api"]


def test_a_gateway_finishes_what_it_has_before_its_next_incarnation(node):
    generation = node.generation("gateway-api")
    assert restart(node, "gateway-api") == [TerminateProcess(generation)]
    assert node.life.wake_at_s == 70.0
    assert spawned(node.exits("gateway-api", exit_code=0)) == ["gateway-api"]


def test_a_gateway_is_killed_for_a_restart_at_once(node):
    generation = node.generation("gateway-api")
    assert restart(node, "gateway-api", immediately=True) == [KillProcess(generation)]
    assert spawned(node.exits("gateway-api")) == ["gateway-api"]


def test_a_fork_server_is_restarted_and_its_children_stay(node):
    generation = node.generation("forkserver")
    assert restart(node, "forkserver") == [TerminateProcess(generation)]
    assert spawned(node.exits("forkserver", exit_code=0)) == ["forkserver"]
    assert node.phase("decode-0") is Phase.READY


def test_what_waits_for_its_fork_server_is_started_behind_it(node):
    node.exits("forkserver")
    node.exits("decode-0")
    assert spawned(restart(node, "decode-0")) == []
    node.tell(TimeElapsed(), at_s=1.0)
    assert "decode-0" in spawned(node.tell(ProcessReady(node.generation("forkserver"))))


def test_a_restart_names_the_fork_server_that_has_failed(node):
    let_fail(node, "forkserver")
    node.exits("decode-0")
    with pytest.raises(RequestError, match="`nodeserve restart forkserver` first"):
        restart(node, "decode-0")
    assert node.phase("decode-0") is Phase.BACKOFF


def test_a_node_that_ends_starts_nothing(node):
    let_fail(node, "decode-0")
    node.tell(StopAsked())
    with pytest.raises(RequestError, match="the node is draining: it starts nothing"):
        restart(node, "decode-0")
    assert node.phase("decode-0") is Phase.FAILED


def test_a_process_that_does_not_exist_is_refused_with_the_names_that_do(node):
    with pytest.raises(RequestError, match=r"gateway-x .* forkserver, dispatcher, .*gateway-api"):
        restart(node, "gateway-x")
