import httpx2
import openai
import pytest

from nodeserve.cli.answers import client_of, errors_of
from nodeserve.cli.connection import find_node
from nodeserve.errors import ConfigError, PeerError

REQUEST = httpx2.Request("GET", "http://nodeserve/v1/models")


@pytest.fixture
def node(tmp_path):
    return find_node(str(tmp_path / "api.sock"), None)


def raised(node, error):
    with pytest.raises(PeerError) as caught, errors_of(node):
        raise error
    return str(caught.value)


def test_a_connection_that_never_was_says_that_nobody_answers(node):
    assert "no nodeserve answers" in raised(node, openai.APIConnectionError(request=REQUEST))


def test_a_connection_that_broke_says_so(node):
    node.socket.touch()
    assert "the answer broke off" in raised(node, openai.APIConnectionError(request=REQUEST))


def test_an_error_in_the_stream_is_shown(node):
    assert "engine died" in raised(node, openai.APIError("engine died", REQUEST, body=None))


def test_the_key_is_the_first_of_its_file(node, tmp_path):
    (tmp_path / "keys").write_text("# lab\nk1\nk2\n")
    assert client_of(node, str(tmp_path / "keys")).api_key == "k1"
    assert client_of(node, None).api_key == "none"
    with pytest.raises(ConfigError):
        client_of(node, str(tmp_path / "none"))
