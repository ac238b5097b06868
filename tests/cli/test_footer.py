import msgspec
import pytest

from nodeserve.cli.connection import find_node
from nodeserve.cli.footer import describe, find_trace
from nodeserve.wire.control import DispatcherStatus
from nodeserve.wire.status import RequestTrace
from tests.cli.conftest import a_status

TRACE = RequestTrace(
    request_id="chatcmpl-1-suffix",
    listener="api",
    prompt_tokens=100,
    cached_tokens=64,
    output_tokens=21,
    finish="stop",
    prefill_worker="prefill-0",
    decode_worker="decode-1",
    handoff_bytes=2 << 20,
    handoff_ms=1.25,
    ttft_ms=40.0,
    total_ms=440.0,
)


def status_of(*traces):
    return a_status(requests=DispatcherStatus(call_id=1, recent=traces))


def test_a_line_says_where_an_answer_ran_and_how_fast():
    assert describe(TRACE) == (
        "prefill-0 → decode-1 · handoff 2.0 MiB in 1.2 ms · 100 prompt tokens (64 cached) · "
        "TTFT 40 ms · 50.0 tokens/s"
    )


def test_a_worker_that_did_both_is_named_once():
    trace = RequestTrace(
        request_id="a",
        listener="api",
        prompt_tokens=1,
        cached_tokens=0,
        output_tokens=1,
        finish="length",
        prefill_worker="decode-0",
        decode_worker="decode-0",
        ttft_ms=3.0,
        total_ms=3.0,
    )
    assert describe(trace) == "decode-0 · 1 prompt tokens (0 cached) · TTFT 3 ms"


def test_a_few_tokens_have_no_speed():
    def rate(tokens):
        return "tokens/s" in describe(msgspec.structs.replace(TRACE, output_tokens=tokens))

    assert [rate(tokens) for tokens in (1, 3, 15, 16)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("finish", "tail"),
    [
        (None, "50.0 tokens/s"),
        ("stop", "50.0 tokens/s"),
        ("length", "ended by length after 21 tokens"),
    ],
)
def test_an_end_that_is_not_the_models_own_is_shown(finish, tail):
    assert describe(TRACE, finish).endswith(f" · {tail}")


def test_an_answer_that_was_resumed_says_so():
    shown = describe(msgspec.structs.replace(TRACE, resumed=2))
    assert shown.endswith("went on at another worker 2x")


def test_a_trace_that_comes_late_is_waited_for(daemon):
    daemon.answers = [status_of(), status_of(TRACE)]
    naps: list[float] = []
    node = find_node(str(daemon.socket), None)
    assert find_trace(node, "chatcmpl-1", sleep=naps.append) == TRACE
    assert len(naps) == 1


def test_a_trace_that_never_comes_is_given_up(daemon):
    daemon.answers = [status_of()]
    naps: list[float] = []
    assert find_trace(find_node(str(daemon.socket), None), "x", sleep=naps.append) is None
    assert len(naps) == 4


def test_no_daemon_means_no_trace(tmp_path):
    assert find_trace(find_node(str(tmp_path / "api.sock"), None), "x") is None
