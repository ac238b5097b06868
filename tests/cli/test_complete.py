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
