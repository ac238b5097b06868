"""Four nodes for the suite, each started when first asked for: two gateways, two layouts."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeserve.config.node import GatewayKind
from tests.conformance.gateway.node import LAYOUTS, Node, running

Nodes = Callable[[GatewayKind, str], Node]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 model in a directory; made by a process of its own, for it needs torch."""
    folder = tmp_path_factory.mktemp("tiny-model")
    program = "import sys; from tests.support.tiny_model import make; make(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(folder)], timeout=120, check=True)
    return folder


@pytest.fixture(scope="session")
def nodes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Return the node with a gateway and a layout."""
    with ExitStack() as stack:
        started: dict[tuple[GatewayKind, str], Node] = {}

        def node(gateway: GatewayKind, layout: str) -> Node:
            if (gateway, layout) not in started:
                folder = tmp_path_factory.mktemp(f"{gateway}-{layout}")
                context = running(gateway, layout, model=tiny_model, folder=folder)
                started[gateway, layout] = stack.enter_context(context)
            return started[gateway, layout]

        yield node


@pytest.fixture(params=list(GatewayKind), ids=str)
def gateway(request: pytest.FixtureRequest) -> GatewayKind:
    return GatewayKind(request.param)


@pytest.fixture(params=list(LAYOUTS))
def node(request: pytest.FixtureRequest, gateway: GatewayKind, nodes: Nodes) -> Node:
    return nodes(gateway, request.param)
