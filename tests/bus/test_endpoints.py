"""Claims about socket addresses."""

import socket
from pathlib import Path

import pytest

from nodeserve.bus.endpoints import claim_path, ipc_address, path_of
from nodeserve.config.paths import MAX_PATH_BYTES
from nodeserve.errors import ConfigError, PeerError


def test_path_of_kernel_length_is_taken() -> None:
    path = Path("/" + "a" * (MAX_PATH_BYTES - 1))
    assert path_of(ipc_address(path)) == path


def test_path_too_long_for_the_kernel_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"108 bytes, the kernel takes 107"):
        ipc_address(Path("/" + "a" * MAX_PATH_BYTES))


def test_length_counts_bytes_not_characters() -> None:
    with pytest.raises(ConfigError):
        ipc_address(Path("/" + "ä" * 60))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "ipc://@name", "ipc://relative/path"])
def test_address_that_others_could_reach_is_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        path_of(address)


def test_free_path_is_claimed(tmp_path: Path) -> None:
    claim_path(tmp_path / "s.sock")


def test_stale_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    claim_path(path)
    assert not path.exists()


def test_live_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(PeerError, match="is live"):
            claim_path(path)
        assert path.is_socket()


def test_file_that_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    path.write_text("precious")
    with pytest.raises(PeerError, match="not a socket"):
        claim_path(path)
    assert path.read_text() == "precious"


def test_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(ConfigError, match="0750"):
        claim_path(tmp_path / "s.sock")


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="create it"):
        claim_path(tmp_path / "none" / "s.sock")
