"""Nodes to be hurt: real processes and sockets, simulated engines."""

import pytest

from tests.e2e.conftest import SIMULATED, tiny_model
from tests.support.daemon import daemon

__all__ = ["tiny_model"]


@pytest.fixture(scope="module")
def slow(tiny_model, tmp_path_factory):
    """A node of two prefill and two decode workers, slow enough to be met in the middle."""
    folder = tmp_path_factory.mktemp("n")
    with daemon(folder, str(tiny_model), *SIMULATED, "--speedup", "0.1") as running:
        yield running.wait_ready()


@pytest.fixture(scope="module")
def crawling(tiny_model, tmp_path_factory):
    """The same at a hundredth of the speed of a GPU, so that a prompt takes a while too."""
    folder = tmp_path_factory.mktemp("c")
    with daemon(folder, str(tiny_model), *SIMULATED, "--speedup", "0.01") as running:
        yield running.wait_ready()


@pytest.fixture
def node(slow):
    """The same; each test gets it whole and leaves it so."""
    slow.wait_until(lambda status: status.state == "ready")
    return slow
