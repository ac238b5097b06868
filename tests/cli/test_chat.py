import os
import pty
import subprocess
import sys

import pytest

from nodeserve.wire.control import DispatcherStatus
from nodeserve.wire.status import RequestTrace
from tests.cli.conftest import a_status
from tests.cli.openai_server import serving

TRACE = RequestTrace(
    request_id="chatcmpl-1-x",
    listener="api",
    prompt_tokens=9,
    cached_tokens=0,
    output_tokens=1,
    finish="stop",
    decode_worker="decode-0",
    ttft_ms=5.0,
)


@pytest.fixture
def asked(daemon):
    daemon.answers = [a_status(requests=DispatcherStatus(call_id=1, recent=(TRACE,)))]
    with serving(daemon.socket) as bodies:
        yield bodies


def test_one_message_gets_one_streamed_answer_and_a_footer(asked, daemon, run):
    words = ("--system", "be brief", "--max-tokens", 9, "--temperature", 0)
    result = run("chat", "hello there", *words, "--socket", daemon.socket)
    assert result.exit_code == 0
    assert result.stdout == "hello;there;\n"
    assert "decode-0 · 9 prompt tokens (0 cached) · TTFT 5 ms" in result.stderr
    assert asked == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hello there"},
            ],
            "stream": True,
            "max_tokens": 9,
            "temperature": 0.0,
        }
    ]


def test_a_talk_remembers_its_turns_until_an_empty_line(asked, daemon, run):
    result = run("chat", "--socket", daemon.socket, input="one\ntwo\n\n")
    assert result.exit_code == 0
    assert [message["content"] for message in asked[1]["messages"]] == ["one", "one;", "two"]


def test_a_talk_in_a_pipe_puts_nothing_but_answers_on_standard_output(asked, daemon, run):
    result = run("chat", "--socket", daemon.socket, input="one two\r\nthree\n")
    assert result.stdout == "one;two;\nthree;\n"
    assert len(result.stderr.splitlines()) == 2  # the footers
    assert asked[0]["messages"][0]["content"] == "one two"


def test_a_talk_on_a_terminal_prompts_and_ends_on_an_empty_line(asked, daemon):
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "nodeserve.cli.main", "chat", "--socket", str(daemon.socket)]
    talk = subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(theirs)
    os.write(ours, b"one two\n\n")
    answers, prompts = talk.communicate(timeout=30)
    os.close(ours)
    assert (talk.returncode, answers) == (0, b"one;two;\n")
    assert b"an empty line ends the talk" in prompts
    assert prompts.count(b">") == 2


def test_simulated_answers_are_bounded_unless_told_otherwise(daemon, run):
    requests = DispatcherStatus(call_id=1, recent=(TRACE,))
    daemon.answers = [a_status(requests=requests, simulate="8xh100-sxm")]
    with serving(daemon.socket) as bodies:
        result = run("chat", "one", "--socket", daemon.socket)
        run("chat", "one", "--max-tokens", 500, "--socket", daemon.socket)
    assert [body["max_tokens"] for body in bodies] == [128, 500]
    assert "simulated tokens, at most 128 of them; --max-tokens asks for more" in result.stderr


def test_a_message_may_come_from_standard_input(asked, daemon, run):
    assert run("chat", "-", "--socket", daemon.socket, input="a b").stdout == "a;b;\n"


def test_the_end_of_input_ends_the_talk(asked, daemon, run):
    assert run("chat", "--socket", daemon.socket, input="").exit_code == 0


def test_an_error_of_the_node_is_one_line(asked, daemon, run):
    result = run("chat", "bad", "--socket", daemon.socket)
    assert result.exit_code == 65
    assert result.stderr.endswith("answered 400: not that\n")
    assert len(result.stderr.splitlines()) == 1


def test_a_stream_without_an_answer_is_an_error(asked, daemon, run):
    result = run("chat", "empty", "--socket", daemon.socket)
    assert (result.exit_code, "held no answer" in result.stderr) == (69, True)


def test_no_node_is_said_with_what_to_do(tmp_path, run):
    result = run("chat", "hello", "--socket", tmp_path / "none.sock")
    assert result.exit_code == 69
    assert "start one with `nodeserve serve MODEL`" in result.stderr
