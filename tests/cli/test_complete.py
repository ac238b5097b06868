import pytest

from nodeserve.wire.control import DispatcherStatus
from nodeserve.wire.status import RequestTrace
from tests.cli.conftest import a_status
from tests.cli.openai_server import serving


def test_a_prompt_is_continued_as_it_comes(tmp_path, run):
    with serving(tmp_path / "api.sock") as asked:
        result = run("complete", "a b c", "--max-tokens", 3, "--socket", tmp_path / "api.sock")
    assert (result.exit_code, result.stdout) == (0, "a;b;c;\n")
    assert asked == [{"model": "tiny", "prompt": "a b c", "max_tokens": 3, "stream": True}]


def test_a_prompt_may_come_from_standard_input(tmp_path, run):
    with serving(tmp_path / "api.sock"):
        result = run("complete", "-", "--socket", tmp_path / "api.sock", input="x y")
    assert result.stdout == "x;y;\n"


def test_a_stream_without_an_answer_is_an_error(tmp_path, run):
    with serving(tmp_path / "api.sock"):
        result = run("complete", "empty", "--socket", tmp_path / "api.sock")
    assert (result.exit_code, "held no answer" in result.stderr) == (69, True)


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("cut", "broke the answer off: its gateway or dispatcher went away"),
        ("gone", "cut the answer off: it was stopped before the answer was whole"),
    ],
)
def test_an_answer_that_breaks_off_is_not_called_a_missing_node(tmp_path, run, word, what):
    with serving(tmp_path / "api.sock"):
        result = run("complete", f"a b {word}", "--socket", tmp_path / "api.sock")
    assert (result.exit_code, result.stdout) == (69, "a;b;\n")
    assert what in result.stderr
    assert "no nodeserve answers" not in result.stderr


def test_an_answer_at_its_limit_says_so(daemon, run):
    trace = RequestTrace(
        request_id="cmpl-1-x",
        listener="api",
        prompt_tokens=9,
        cached_tokens=0,
        output_tokens=3,
        finish="length",
    )
    daemon.answers = [a_status(requests=DispatcherStatus(call_id=1, recent=(trace,)))]
    with serving(daemon.socket, finished_by="length"):
        result = run("complete", "a b c", "--socket", daemon.socket)
    assert result.stderr.endswith("TTFT 0 ms · ended by length after 3 tokens\n")
