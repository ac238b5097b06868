import grp
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nodeserve.bus.listener import AdoptedListener, TcpListener, UnixListener
from nodeserve.errors import ConfigError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "api.sock"


def listening(path: Path) -> UnixListener:
    return UnixListener(path, mode=0o600, group=None)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_clients_connect_until_it_is_closed_and_nothing_is_left(path):
    listener = listening(path)
    assert answers(path)
    listener.close()
    listener.close()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_socket_has_the_mode_and_group_it_was_given(path, mode):
    group = grp.getgrgid(os.getgid())
    listener = UnixListener(path, mode=mode, group=group.gr_name)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (mode, group.gr_gid)
    listener.close()


def test_a_live_nodeserve_is_not_pushed_off_its_path(path):
    listener = listening(path)
    with pytest.raises(ConfigError, match=f"already running there, pid {os.getpid()}"):
        listening(path)
    assert answers(path)
    listener.close()


def test_another_program_is_not_pushed_off_its_path(path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ConfigError, match="another program listens there"):
            listening(path)
        assert answers(path)


def test_the_path_of_a_killed_nodeserve_is_taken_over(path):
    script = (
        "import os, sys; from pathlib import Path; from nodeserve.bus.listener import UnixListener;"
        "UnixListener(Path(sys.argv[1]), mode=0o600, group=None); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, path], cwd=root, timeout=30, check=False)
    assert done.returncode == -9
    assert path.exists()
    listener = listening(path)
    assert answers(path)
    listener.close()


def test_a_file_that_is_no_socket_stays(path):
    path.write_text("precious")
    with pytest.raises(ConfigError, match="a file that is no socket"):
        listening(path)
    assert path.read_text() == "precious"


def test_a_refused_start_leaves_the_path_free(path):
    path.write_text("precious")
    with pytest.raises(ConfigError):
        listening(path)
    path.unlink()
    listening(path).close()


@pytest.mark.parametrize(
    ("bad", "what"),
    [("no/such/directory/api.sock", "cannot be made"), ("x" * 200, "the kernel takes at most 107")],
)
def test_paths_that_cannot_be_used_are_refused(tmp_path, bad, what):
    with pytest.raises(ConfigError, match=what):
        listening(tmp_path / bad)


def test_an_unknown_group_leaves_nothing_behind(path):
    with pytest.raises(ConfigError, match="group no-such-group cannot be set"):
        UnixListener(path, mode=0o600, group="no-such-group")
    assert not path.exists()


def test_it_stops_accepting_but_keeps_the_clients_it_has(path):
    listener = listening(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.stop_accepting()
        assert not answers(path)
        listener.socket.setblocking(True)
        served, _ = listener.socket.accept()
        served.sendall(b"hello")
        served.close()
        assert client.recv(5) == b"hello"
    listener.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_tcp_clients_connect_until_it_is_closed(host):
    listener = TcpListener(host, 0)
    address = listener.socket.getsockname()
    socket.create_connection(address[:2], timeout=5).close()
    listener.stop_accepting()
    listener.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address[:2], timeout=5)


def test_a_port_that_is_taken_is_refused():
    listener = TcpListener("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: is taken by another process"):
        TcpListener("127.0.0.1", port)
    listener.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_ours_is_refused(host):
    with pytest.raises(ConfigError, match=f"listener {host}:80"):
        TcpListener(host, 80)


def test_an_adopted_socket_stays_open_and_in_its_place_when_the_daemon_ends(path):
    with socket.socket(socket.AF_UNIX) as managers:
        managers.bind(str(path))
        managers.listen()
        adopted = AdoptedListener(managers.dup())
        assert adopted.reachable
        adopted.stop_accepting()
        adopted.close()
        adopted.close()
        assert answers(path)


def test_an_adopted_tcp_socket_is_reachable_in_its_own_network():
    with socket.create_server(("127.0.0.1", 0)) as managers:
        adopted = AdoptedListener(managers.dup())
        assert adopted.reachable
        adopted.close()


def test_a_listener_is_taken_over_with_its_clients_and_its_lock(path, tmp_path):
    first = listening(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        kept = [os.dup(fd) for fd in first.fds]
        first.socket.close()
        os.close(first.lock_fd)
        second = UnixListener.taken_over(path, socket_fd=kept[0], lock_fd=kept[1])
        accepted, _ = second.socket.accept()
        accepted.close()
        with pytest.raises(ConfigError, match="already running"):
            listening(path)
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_a_tcp_listener_is_taken_over_with_its_clients():
    first = TcpListener("127.0.0.1", 0)
    with socket.create_connection(first.socket.getsockname()):
        second = TcpListener.taken_over(os.dup(*first.fds))
        first.close()
        accepted, _ = second.socket.accept()
        accepted.close()
    second.close()
