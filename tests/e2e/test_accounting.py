"""A node that books: what its requests used adds up, whatever dies meanwhile."""

import json
import subprocess
import sys

import pytest

from tests.e2e.conftest import SIMULATED
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]


@pytest.fixture
def serving(tiny_model, tmp_path):
    """Start nodes with one ledger, one after another."""
    config = tmp_path / "node.toml"
    config.write_text(
        f'[accounting]\nenabled = true\nnode = "n1"\nzone = "DEU"\ndb = "{tmp_path}/ledger.db"\n'
    )
    return lambda: daemon(
        tmp_path, str(tiny_model), "--config", str(config), *SIMULATED, "--speedup", "5"
    )


def energy(tmp_path, *words):
    argv = [sys.executable, "-m", "nodeserve.cli.main", *words, "--db", str(tmp_path / "ledger.db")]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def booked(node, tmp_path, response_id):
    """Wait until what a response has used is settled."""

    def settled(_):
        shown = energy(tmp_path, "energy", "show", response_id, "--json")
        return shown.returncode == 0 and json.loads(shown.stdout)["settled"]

    node.wait_until(settled)
    return json.loads(energy(tmp_path, "energy", "show", response_id, "--json").stdout)


def test_requests_are_booked_over_the_death_of_monitor_and_ledger_and_of_the_node(
    serving, tmp_path
):
    with serving() as node:
        node.wait_ready()
        node.wait_until(lambda status: len(status.devices) == 4)
        before = node.complete([5 * place % 250 + 3 for place in range(300)], max_tokens=40)
        first = booked(node, tmp_path, before["id"])
        assert first["prefill_mj"] > 0
        assert first["decode_mj"] > 0
        for name in ("ledger", "monitor"):
            node.kill(name)
            node.wait_until(lambda status: status.state == "ready" and len(status.devices) == 4)
            after = node.complete([7 * place % 250 + 3 for place in range(300)], max_tokens=40)
            assert booked(node, tmp_path, after["id"])["requests"][0]["output_tokens"] == 40
            assert energy(tmp_path, "energy", "verify").returncode == 0
        assert node.stop() == 0
    with serving() as node:
        node.wait_ready()
        again = node.complete([9 * place % 250 + 3 for place in range(300)], max_tokens=40)
        assert booked(node, tmp_path, again["id"])["requests"][0]["output_tokens"] == 40
        assert booked(node, tmp_path, before["id"]) == first
        assert node.stop() == 0
    assert energy(tmp_path, "energy", "verify").returncode == 0
    report = json.loads(
        energy(tmp_path, "energy", "report", "--by", "listener", "--format", "json").stdout
    )
    assert report
