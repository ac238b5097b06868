import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from nodeserve.config.node import GatewayKind, Listener
from nodeserve.errors import ConfigError
from nodeserve.supervisor.activation import match_listeners

TAKE = """
import json, os, sys
from nodeserve.supervisor.activation import take_sockets
for place, fd in enumerate(json.loads(sys.argv[1])):
    os.dup2(fd, 3 + place)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
taken = take_sockets(os.environ, os.getpid())
sockets = [s for named in taken.values() for s in named]
print(json.dumps({
    "names": {name: [s.getsockname() for s in named] for name, named in taken.items()},
    "left": [name for name in os.environ if name.startswith("LISTEN_")],
    "inherited": [s.get_inheritable() for s in sockets],
    "blocking": [s.getblocking() for s in sockets],
}))
"""


def take(sockets, **variables):
    """Return what a program makes of sockets that it was started with, as a manager does it."""
    far = [fcntl.fcntl(s.fileno(), fcntl.F_DUPFD, 100) for s in sockets]
    environ = os.environ | {"LISTEN_FDS": str(len(sockets))} | variables
    words = [sys.executable, "-c", TAKE, json.dumps(far)]
    try:
        ran = subprocess.run(words, env=environ, pass_fds=far, stdout=subprocess.PIPE, check=True)
    finally:
        for fd in far:
            os.close(fd)
    return json.loads(ran.stdout)


@pytest.fixture
def unix(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "api.sock"))
        listening.listen()
        yield listening


@pytest.fixture
def abstract(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{tmp_path}")
        listening.listen()
        yield listening


@pytest.fixture
def tcp():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def listener(name="api", **where):
    return Listener(name=name, gateway=GatewayKind.RUST, **where)


def test_sockets_are_taken_by_name_and_meant_for_no_child(unix, tcp):
    taken = take([unix, tcp], LISTEN_FDNAMES="api:tcp")
    assert taken == {
        "names": {"api": [unix.getsockname()], "tcp": [list(tcp.getsockname())]},
        "left": [],
        "inherited": [False, False],
        "blocking": [False, False],
    }


def test_sockets_for_another_process_are_left_alone(unix):
    taken = take([unix], LISTEN_FDNAMES="api", LISTEN_PID="1")
    assert taken["names"] == {}
    assert taken["left"] == []


def test_a_socket_without_a_name_is_called_unknown(unix):
    assert list(take([unix])["names"]) == ["unknown"]


def test_each_socket_goes_to_the_listener_of_its_name(unix, tcp):
    port = tcp.getsockname()[1]
    listeners = [
        listener("api", socket=unix.getsockname()),
        listener("tcp", host="localhost", port=port),
        listener("own", socket="/run/own.sock"),
    ]
    assert match_listeners({"api": [unix], "tcp": [tcp]}, listeners) == {"api": unix, "tcp": tcp}


def test_a_socket_that_no_listener_answers_on_is_refused(unix):
    with pytest.raises(ConfigError, match=r"api\.sock.*FileDescriptorName=tcp.*there are: api"):
        match_listeners({"tcp": [unix]}, [listener(socket=unix.getsockname())])


def test_two_sockets_of_one_name_are_refused(unix, tcp):
    with pytest.raises(ConfigError, match="passes 2 sockets for the listener api"):
        match_listeners({"api": [unix, tcp]}, [listener(socket=unix.getsockname())])


@pytest.mark.parametrize("where", [{"socket": "/run/other.sock"}, {"host": "127.0.0.1", "port": 1}])
def test_a_unix_socket_elsewhere_than_configured_is_refused(unix, where):
    with pytest.raises(ConfigError, match="make ListenStream= and the"):
        match_listeners({"api": [unix]}, [listener(**where)])


def test_a_socket_open_to_more_than_the_listener_says_is_refused():
    """Otherwise an address that other machines reach would need no key."""
    with socket.socket() as everywhere:
        everywhere.bind(("0.0.0.0", 0))
        everywhere.listen()
        port = everywhere.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"listens on 0\.0\.0\.0:{port}.*127\.0\.0\.1:"):
            match_listeners({"api": [everywhere]}, [listener(host="127.0.0.1", port=port)])
        with pytest.raises(ConfigError, match="listener api is configured"):
            match_listeners({"api": [everywhere]}, [listener(socket="/run/api.sock")])


def test_a_socket_that_does_not_listen_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as connected:
        connected.bind(str(tmp_path / "s"))
        with pytest.raises(ConfigError, match="does not accept connections"):
            match_listeners({"api": [connected]}, [listener(socket=str(tmp_path / "s"))])


def test_an_abstract_socket_is_refused_with_its_name(abstract, tmp_path):
    with pytest.raises(ConfigError, match=rf"listens on @{tmp_path}, and listener api is"):
        match_listeners({"api": [abstract]}, [listener(socket=str(tmp_path / "api.sock"))])
