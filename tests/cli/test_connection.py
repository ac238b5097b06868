import os
import socket as sockets
from pathlib import Path

import pytest

from nodeserve.cli.connection import ask, find_node
from nodeserve.config.paths import find_socket
from nodeserve.errors import CapacityError, InvariantError, PeerError, RequestError
from nodeserve.wire import control
from tests.cli.conftest import a_status


def test_the_default_node_is_where_serve_puts_it():
    node = find_node(None, None)
    assert node.socket == find_socket(os.environ, os.getuid())
    assert node.runtime_dir == node.socket.with_name("api.sock.d")


def test_options_name_another_node(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_node("a.sock", None).runtime_dir == tmp_path / "a.sock.d"
    assert find_node("a.sock", "inside").runtime_dir == tmp_path / "inside"


def test_an_answer_is_returned(daemon):
    daemon.answers = [control.CommandReply(detail="done")]
    node = find_node(str(daemon.socket), None)
    assert ask(node, control.DrainRequest(), control.CommandReply).detail == "done"
    assert daemon.heard == [control.DrainRequest()]


def test_an_error_is_raised_as_the_daemon_says_it(daemon):
    daemon.answers = [control.CommandReply(error="decode-9: no such worker")]
    with pytest.raises(PeerError, match=r"^decode-9: no such worker$"):
        ask(find_node(str(daemon.socket), None), control.StatusRequest(), control.StatusReply)


@pytest.mark.parametrize("kind", [RequestError, CapacityError, InvariantError])
def test_an_error_is_of_the_kind_that_the_daemon_says(daemon, kind):
    daemon.answers = [control.CommandReply(error="no", exit_code=kind.exit_code)]
    with pytest.raises(kind, match=r"^no$"):
        ask(find_node(str(daemon.socket), None), control.StatusRequest(), control.StatusReply)


def test_an_answer_of_another_kind_is_an_error(daemon):
    daemon.answers = [control.CommandReply()]
    with pytest.raises(PeerError, match="answered with a CommandReply; is it another release"):
        ask(find_node(str(daemon.socket), None), control.StatusRequest(), control.StatusReply)


def test_a_daemon_that_does_not_answer_costs_the_deadline_only(daemon):
    node = find_node(str(daemon.socket), None)
    with pytest.raises(PeerError, match=r"no message within 0\.1 s"):
        ask(node, control.StatusRequest(), control.StatusReply, within_s=0.1)


@pytest.mark.parametrize("left", ["nothing", "a dead socket"])
def test_no_daemon_is_said_at_once_with_what_to_do(tmp_path, left):
    socket = tmp_path / "api.sock"
    if left == "a dead socket":
        Path(f"{socket}.d").mkdir()
        with sockets.socket(sockets.AF_UNIX) as dead:
            dead.bind(f"{socket}.d/control.sock")
    with pytest.raises(PeerError, match=rf"no nodeserve answers at {socket}; start one with"):
        ask(find_node(str(socket), None), control.StatusRequest(), control.StatusReply)


@pytest.mark.parametrize(("name", "what"), [("file", "a file"), (".", "a directory")])
def test_what_is_no_socket_is_said_so(tmp_path, name, what):
    (tmp_path / "file").touch()
    with pytest.raises(PeerError, match=f"is {what} and no socket; give --socket the path"):
        ask(find_node(str(tmp_path / name), None), control.StatusRequest(), control.StatusReply)


@pytest.fixture
def second(tmp_path):
    with sockets.socket(sockets.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "batch.sock"))
        listening.listen()
        yield tmp_path / "batch.sock"


def test_another_socket_of_a_node_beside_it_finds_that_node(daemon, second):
    daemon.answers = [a_status(listeners=(str(daemon.socket), str(second)))]
    node = find_node(str(second), None)
    assert (node.socket, node.runtime_dir) == (second, daemon.inside)
    assert ask(node, control.StatusRequest(), control.StatusReply).state == "ready"


def test_a_socket_of_no_node_in_sight_says_where_commands_go(daemon, second):
    daemon.answers = [a_status()]
    with pytest.raises(PeerError, match=r"takes requests, and no commands.*--runtime-dir"):
        ask(find_node(str(second), None), control.StatusRequest(), control.StatusReply)
