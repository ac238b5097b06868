import socket as sockets

import httpx2
import msgspec
import openai
import pytest

from nodeserve.cli.answers import client_of, errors_of, why_it_waits
from nodeserve.cli.connection import find_node, kind_of_code
from nodeserve.errors import CapacityError, ConfigError, PeerError, RequestError
from nodeserve.wire.control import DispatcherStatus
from nodeserve.wire.status import RequestTrace
from tests.cli.conftest import a_status
from tests.cli.openai_server import serving

REQUEST = httpx2.Request("GET", "http://nodeserve/v1/models")


@pytest.fixture
def node(tmp_path):
    return find_node(str(tmp_path / "api.sock"), None)


def raised(node, error):
    with pytest.raises(PeerError) as caught, errors_of(node):
        raise error
    return str(caught.value)


@pytest.mark.parametrize("left", ["nothing", "a dead socket"])
def test_a_connection_that_never_was_says_that_nobody_answers(node, left):
    if left == "a dead socket":
        with sockets.socket(sockets.AF_UNIX) as dead:
            dead.bind(str(node.socket))
    with pytest.raises(PeerError, match=r"no nodeserve answers.*--socket"), errors_of(node):
        client_of(node, None).with_options(max_retries=0).models.list()


def test_a_connection_that_broke_says_so(node):
    node.socket.touch()
    said = raised(node, openai.APIConnectionError(request=REQUEST))
    assert "ended the connection without an answer; see `nodeserve status`" in said


def test_an_error_in_the_stream_is_shown(node):
    assert "engine died" in raised(node, openai.APIError("engine died", REQUEST, body=None))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestError),
        (401, RequestError),
        (404, RequestError),
        (429, CapacityError),
        (500, PeerError),
        (503, CapacityError),
    ],
)
def test_what_the_node_answers_says_who_must_act(node, status, kind):
    response = httpx2.Response(status, request=REQUEST)
    error = openai.APIStatusError("no", response=response, body={"message": "not that"})
    with pytest.raises(kind, match=f"answered {status}: not that") as caught, errors_of(node):
        raise error
    assert type(caught.value) is kind


def test_the_key_is_the_first_of_its_file(node, tmp_path):
    (tmp_path / "keys").write_text("# lab\nk1\nk2\n")
    assert client_of(node, str(tmp_path / "keys")).api_key == "k1"
    assert client_of(node, None).api_key == "none"
    with pytest.raises(ConfigError):
        client_of(node, str(tmp_path / "none"))


def fail(daemon, node, code):
    """Be told by HTTP that a request failed, and by the daemon why."""
    with errors_of(node) as answer:
        failed = RequestTrace(
            request_id=f"cmpl-{answer.headers['X-Request-Id']}-8f",
            listener="api",
            prompt_tokens=1,
            cached_tokens=0,
            output_tokens=0,
            finish="error",
            error="it has waited 1 s",
            exit_code=code,
        )
        daemon.answers = [a_status(requests=DispatcherStatus(call_id=1, recent=(failed,)))]
        raise openai.APIError("Internal server error", REQUEST, body=None)


@pytest.mark.parametrize("code", [75, 65, 69])
def test_what_the_node_has_failed_is_told_with_its_reason_and_kind(daemon, code):
    with pytest.raises(kind_of_code(code), match="it has waited 1 s") as caught:
        fail(daemon, find_node(str(daemon.socket), None), code)
    assert type(caught.value) is kind_of_code(code)


def test_who_asks_a_node_that_is_starting_is_told_whom_the_answer_waits_for():
    decode, prefill = a_status().processes
    coming = msgspec.structs.replace(decode, state="starting", detail="loading the model")
    status = a_status(state="starting", processes=(coming, prefill))
    assert why_it_waits(status) == (
        "the node is starting; the answer waits for decode-0 (loading the model), prefill-0"
        " (no memory left)"
    )
    assert why_it_waits(a_status(state="starting", processes=())) is not None


def test_who_asks_a_node_that_lacks_somebody_is_told_whom():
    assert why_it_waits(a_status(state="unavailable", detail="no worker decodes")) == (
        "the node is unavailable: no worker decodes; the answer waits until that is over"
    )
    assert why_it_waits(a_status(state="degraded", detail="decode-1 is failed")) is None
    assert why_it_waits(a_status()) is None


@pytest.mark.parametrize("command", ["complete", "chat"])
def test_the_commands_say_it_before_they_wait(daemon, run, command):
    daemon.answers = [a_status(state="starting")]
    with serving(daemon.socket):
        result = run(command, "hi", "--socket", daemon.socket)
    assert result.stderr.startswith("the node is starting; the answer waits for prefill-0")
