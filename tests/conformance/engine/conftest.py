"""The engines that must behave alike: simulated always, vLLM where it is installed."""

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from nodeserve.wire.spawn import KvSpec
from tests.support import vllm_entry
from tests.support.simulated_node import SimulatedNode
from tests.support.vllm_node import VllmNode, forkserver_context

PREFILL, DECODE = 1, 2
"""Generations. Roles are routing: both engines are alike."""


def ledger(node: VllmNode) -> str:
    """Where the node's engines look for a ledger, whether or not there is one."""
    return f"ipc://{node.folder}/ledger"


@contextmanager
def _vllm_node(folder: Path) -> Iterator[VllmNode]:
    with forkserver_context() as context:
        process = context.Process(target=vllm_entry.make_model, args=(str(folder / "model"),))
        process.start()
        process.join(120)
        assert process.exitcode == 0
        yield VllmNode(context, folder, folder / "model")


@contextmanager
def _simulated_node(folder: Path) -> Iterator[VllmNode]:
    yield SimulatedNode(folder, speedup=math.inf)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(_simulated_node, id="simulated"),
        pytest.param(_vllm_node, id="vllm", marks=pytest.mark.vllm),
    ],
)
def node(request):
    """Two engines of one kind behind one router; a short folder, for socket paths end at 107."""
    folder = Path(tempfile.mkdtemp(prefix="ns-"))
    try:
        with request.param(folder) as engines:
            try:
                for generation in (PREFILL, DECODE):
                    spec = engines.spec(generation, KvSpec(), {})
                    engines.start(msgspec.structs.replace(spec, ledger_address=ledger(engines)))
                engines.wait_ready(PREFILL, DECODE)
                yield engines
            finally:
                engines.close()
    finally:
        shutil.rmtree(folder)
