import json

import pytest

from nodeserve.wire.device_report import DeviceSample, Finding
from tests.cli.conftest import a_status


@pytest.mark.parametrize(
    ("state", "detail", "line"),
    [("ready", None, "ready"), ("degraded", "w-1 is failed", "degraded: w-1 is failed")],
)
def test_a_node_that_serves_is_healthy(daemon, run, state, detail, line):
    daemon.answers = [a_status(state=state, detail=detail)]
    result = run("health", "--socket", daemon.socket)
    assert (result.exit_code, result.stdout) == (0, f"{line}\n")


@pytest.mark.parametrize("state", ["starting", "unavailable", "draining", "stopping"])
def test_a_node_that_takes_no_requests_is_not(daemon, run, state):
    daemon.answers = [a_status(state=state, detail="no worker decodes")]
    result = run("health", "--socket", daemon.socket)
    assert (result.exit_code, result.stdout) == (69, "")
    assert f"the node is {state}: no worker decodes" in result.stderr


SAMPLE = DeviceSample(
    meter="GPU-a",
    index=0,
    name="H100",
    age_s=0.1,
    power_mw=412_600,
    temperature_c=61,
    throttle_reasons=("sw_power_cap",),
)
FINDING = Finding(
    meter="GPU-a",
    signal="xid_79",
    severity="fatal",
    action="fence",
    detail="fell off the bus",
    provenance="NVIDIA",
    since_unix_s=1_700_000_000.0,
)


def test_devices_and_what_is_wrong_with_them_are_shown(daemon, run):
    daemon.answers = [a_status(devices=(SAMPLE,), findings=(FINDING,))]
    lines = run("health", "--socket", daemon.socket).stdout.splitlines()
    assert lines[0] == "ready"
    assert lines[3].split() == ["GPU-a", "H100", "413", "W", "61", "C", "-", "-", "sw_power_cap"]
    assert lines[6].startswith("GPU-a")
    assert "xid_79" in lines[6]
    assert "2023-11-14T22:13:20Z" in lines[6]


@pytest.mark.parametrize(("state", "code"), [("ready", 0), ("unavailable", 69)])
def test_json_has_all_of_it_whether_or_not_the_node_is_able(daemon, run, state, code):
    daemon.answers = [a_status(state=state, devices=(SAMPLE,), findings=(FINDING,))]
    result = run("health", "--json", "--socket", daemon.socket)
    said = json.loads(result.stdout)
    assert result.exit_code == code
    assert (said["able"], said["state"]) == (code == 0, state)
    assert said["devices"][0]["power_mw"] == 412_600
    assert said["findings"][0]["action"] == "fence"


def test_no_node_is_not_healthy(tmp_path, run):
    assert run("health", "--socket", tmp_path / "none.sock").exit_code == 69
