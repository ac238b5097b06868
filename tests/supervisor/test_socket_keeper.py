import logging
import socket

import pytest

from nodeserve.supervisor.socket_keeper import SecondNames


@pytest.fixture
def listening(tmp_path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "api.sock"))
        bound.listen()
        yield bound


@pytest.fixture
def wanted(tmp_path):
    return {"api": tmp_path / "api.sock"}


def test_a_deleted_file_is_the_same_socket_again(tmp_path, listening, wanted):
    names = SecondNames(tmp_path / "kept")
    names.look(wanted)
    wanted["api"].unlink()
    names.look(wanted)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(wanted["api"]))
        listening.accept()[0].close()


def test_a_socket_bound_anew_is_the_one_that_comes_back(tmp_path, listening, wanted):
    names = SecondNames(tmp_path / "kept")
    names.look(wanted)
    wanted["api"].unlink()
    with socket.socket(socket.AF_UNIX) as second:
        second.bind(str(wanted["api"]))
        second.listen()
        number = wanted["api"].stat().st_ino
        names.look(wanted)
        wanted["api"].unlink()
        names.look(wanted)
        assert wanted["api"].stat().st_ino == number


def test_who_is_wanted_no_more_does_not_come_back(tmp_path, listening, wanted):
    names = SecondNames(tmp_path / "kept")
    names.look(wanted)
    names.look({})
    assert list((tmp_path / "kept").iterdir()) == []
    wanted["api"].unlink()
    names.look(wanted)
    assert not wanted["api"].exists()


def test_what_has_no_name_left_is_said_once(tmp_path, wanted, caplog):
    names = SecondNames(tmp_path / "kept")
    with caplog.at_level(logging.ERROR):
        names.look(wanted)
        names.look(wanted)
    [record] = caplog.records
    assert "socket_file_unkept" in record.getMessage()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path, wanted):
    wanted["api"].write_text("mine")
    names = SecondNames(tmp_path / "kept")
    names.look(wanted)
    assert wanted["api"].read_text() == "mine"
    assert not (tmp_path / "kept").exists()
