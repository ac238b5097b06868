import subprocess
import sys

import pytest

from tests.support.daemon import daemon

SIMULATED = ("--simulate", "4xh100-sxm", "--gateway", "rust")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A float32 model whose output depends on the prompt; made where torch may be imported."""
    folder = tmp_path_factory.mktemp("tiny")
    program = "import sys; from tests.support.tiny_model import make; make(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(folder)], timeout=120, check=True)
    return folder


@pytest.fixture
def simulated(tiny_model, tmp_path):
    """A ready node of 2 prefill and 2 decode workers that need no torch."""
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--speedup", "20") as running:
        yield running.wait_ready()
