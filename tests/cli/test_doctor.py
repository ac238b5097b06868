import json

from nodeserve.cli.checks import Check, Verdict
from nodeserve.cli.doctor import to_lines


def test_every_line_has_a_verdict_and_the_exit_code_follows_the_worst(run, tmp_path):
    result = run("doctor", "--json", "--socket", tmp_path / "api.sock")
    report = json.loads(result.output)
    verdicts = {check["verdict"] for check in report["checks"]}
    assert verdicts <= {"ok", "warn", "fail"}
    assert report["ok"] is ("fail" not in verdicts)
    assert result.exit_code == (1 if "fail" in verdicts else 0)
    names = {check["name"] for check in report["checks"]}
    assert {"python", "nodeserve", "vllm", "vllm-rs", "cpus", "open files", "socket"} <= names


def test_a_missing_model_fails(run, tmp_path):
    result = run("doctor", tmp_path / "none", "--socket", tmp_path / "api.sock")
    assert result.exit_code == 1
    assert "fail  model" in result.output


def test_advice_stands_below_its_line():
    checks = [
        Check(name="a", verdict=Verdict.OK, found="fine"),
        Check(name="long", verdict=Verdict.WARN, found="odd", advice="do this"),
    ]
    lines = [
        line.replace("\x1b[32m", "").replace("\x1b[33m", "").replace("\x1b[0m", "")
        for line in to_lines(checks)
    ]
    assert lines == ["ok    a     fine", "warn  long  odd", "            → do this"]
