"""A node that cannot answer says so, though its gateway is well."""

import subprocess
import sys

import pytest

from nodeserve.wire.control import DrainRequest, RestartRequest
from tests.e2e.conftest import SIMULATED
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]


def health(node):
    argv = [sys.executable, "-m", "nodeserve.cli.main", "health", "--socket", str(node.socket)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return said.returncode, said.stdout + said.stderr


@pytest.mark.parametrize("gateway", ["rust", "python"])
def test_a_node_without_a_worker_says_that_it_cannot_serve(tiny_model, tmp_path, gateway):
    words = (*SIMULATED[:2], "--gateway", gateway, "--aggregated", "1")
    with daemon(tmp_path, str(tiny_model), *words) as node:
        node.wait_ready()
        assert health(node) == (0, "ready\n")
        assert node.command(DrainRequest(worker="aggregated-0", force=True)).error is None
        assert node.status().state == "unavailable"
        code, said = health(node)
        assert code == 69
        assert "the node is unavailable: no worker decodes" in said
        assert node.client.get("/health").status_code == 200  # it answers for itself alone
        assert node.command(RestartRequest(worker="aggregated-0")).error is None
        assert health(node) == (0, "ready\n")
