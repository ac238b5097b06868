import msgspec
import pytest

from nodeserve.cli.connection import find_node
from nodeserve.cli.patience import ask_patiently
from nodeserve.errors import DeadlineError, RequestError
from nodeserve.wire.control import CommandReply, DrainRequest, RestartRequest, StatusRequest
from tests.cli.conftest import FakeDaemon, a_status


class Slow(FakeDaemon):
    """Answers a status, and a command never."""

    def answer_to(self, message):
        return super().answer_to(message) if isinstance(message, StatusRequest) else None


@pytest.fixture
def slow(tmp_path):
    made = Slow(tmp_path / "api.sock")
    worker, down = a_status().processes
    worker = msgspec.structs.replace(worker, state="draining")
    down = msgspec.structs.replace(down, state="starting", detail="loading the model")
    made.answers = [a_status(processes=(worker, down))]
    yield made
    made.close()


def said(socket, message):
    with pytest.raises(DeadlineError) as caught:
        ask_patiently(find_node(str(socket), None), message, within_s=0.05)
    return str(caught.value)


def test_a_drain_that_takes_longer_says_what_still_runs(slow):
    assert said(slow.socket, DrainRequest(worker="decode-0")) == (
        "decode-0 is draining with 5 requests running, 2 waiting after 0.05 s; that goes on "
        "by itself: see `nodeserve status`, or end it with `nodeserve restart decode-0 --now`"
    )


def test_a_restart_that_takes_longer_says_how_far_it_is(slow):
    text = said(slow.socket, RestartRequest(worker="prefill-0"))
    assert text.startswith("prefill-0 is starting (loading the model) after 0.05 s; ")
    assert "--now" not in text


def test_an_answer_in_time_is_passed_on(daemon):
    node = find_node(str(daemon.socket), None)
    daemon.answers = [CommandReply(detail="done")]
    assert ask_patiently(node, DrainRequest(worker="a"), within_s=5).detail == "done"
    daemon.answers = [CommandReply(error="no", exit_code=65)]
    with pytest.raises(RequestError):
        ask_patiently(node, DrainRequest(worker="a"), within_s=5)
