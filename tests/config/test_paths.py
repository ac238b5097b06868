import os
from pathlib import Path

import pytest

from nodeserve.config import paths
from nodeserve.errors import ConfigError


@pytest.mark.parametrize(
    ("environ", "uid", "expected"),
    [
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/x"}, 0, "/run/a"),
        ({"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/nodeserve"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/user/0/nodeserve"),
        ({}, 0, "/run/nodeserve"),
        ({}, 7, "/tmp/nodeserve-7"),
    ],
)
def test_the_default_directory_is_systemds_then_the_sessions(environ, uid, expected):
    assert paths.default_directory(environ, uid) == Path(expected)
    assert paths.default_socket(environ, uid) == Path(expected) / "api.sock"


def test_a_client_looks_for_the_users_own_node_then_for_the_machines(tmp_path):
    service, environ = tmp_path / "service.sock", {"XDG_RUNTIME_DIR": str(tmp_path)}
    own = tmp_path / "nodeserve" / "api.sock"
    assert paths.find_socket(environ, 1000, service=service) == own
    service.touch()
    assert paths.find_socket(environ, 1000, service=service) == service
    own.parent.mkdir()
    own.touch()
    assert paths.find_socket(environ, 1000, service=service) == own


def test_internals_lie_beside_the_socket():
    inside = paths.internals_of(Path("/run/a/api.sock"))
    assert inside == Path("/run/a/api.sock.d")
    assert paths.control_socket(inside) == Path("/run/a/api.sock.d/control.sock")


def test_the_longest_socket_path_that_the_kernel_takes_is_accepted():
    assert paths.path_problem(Path("/" + "x" * 106)) is None
    assert "108 bytes long" in (paths.path_problem(Path("/" + "x" * 107)) or "")


def test_bytes_count_and_not_characters():
    assert paths.path_problem(Path("/" + "é" * 54)) is not None


def test_a_runtime_directory_leaves_room_for_its_sockets():
    room = paths.MAX_PATH_BYTES - len(paths.LONGEST_INTERNAL_NAME) - 1
    fits = Path("/" + "x" * (room - 1))
    assert paths.runtime_dir_problem(fits) is None
    assert f"at most {room}" in (paths.runtime_dir_problem(Path(f"{fits}x")) or "")


def test_a_missing_directory_is_made(tmp_path):
    paths.prepare_directory(tmp_path / "a" / "b", os.getuid())
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        paths.prepare_directory(tmp_path / "a", os.getuid())


@pytest.mark.parametrize(
    ("environ", "uid", "where"),
    [
        ({"STATE_DIRECTORY": "{0}/a:{0}/b", "XDG_STATE_HOME": "/nowhere"}, 0, "a"),
        ({"XDG_STATE_HOME": "{0}/x"}, 1000, "x/nodeserve"),
        ({"HOME": "{0}/h"}, 1000, "h/.local/state/nodeserve"),
        ({"STATE_DIRECTORY": "/proc/no"}, 0, "run/state"),
    ],
)
def test_state_lies_where_it_outlives_the_node_if_it_can(tmp_path, environ, uid, where):
    given = {name: value.format(tmp_path) for name, value in environ.items()}
    found = paths.state_directory(given, uid, tmp_path / "run")
    assert found == tmp_path / where
    assert found.is_dir()


def test_the_ledger_is_in_the_node_s_state_directory(tmp_path):
    environ = {"XDG_STATE_HOME": str(tmp_path / "state")}
    wanted = tmp_path / "state" / "nodeserve" / "ledger.db"
    inside = tmp_path / "api.sock.d" / "state" / "ledger.db"
    assert paths.find_ledger(environ, 1000, tmp_path / "api.sock.d") == wanted
    inside.parent.mkdir(parents=True)
    inside.touch()
    assert paths.find_ledger(environ, 1000, tmp_path / "api.sock.d") == inside
    assert not wanted.parent.exists()
