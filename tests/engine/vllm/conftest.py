"""One forkserver with vLLM, one tiny model, and three engines for the tests that only read."""

import shutil
import tempfile
from pathlib import Path

import pytest

from nodeserve.wire.spawn import KvSpec
from tests.support import vllm_entry
from tests.support.vllm_node import VllmNode, forkserver_context

ASYNC, SYNC, SHORT = 1, 2, 3
"""Generations: loads beside steps; loads before the step; leases that end at once."""


@pytest.fixture(scope="session")
def vllm_context():
    with forkserver_context() as context:
        yield context


@pytest.fixture(scope="session")
def tiny_model(vllm_context, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-model")
    process = vllm_context.Process(target=vllm_entry.make_model, args=(str(folder),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return folder


@pytest.fixture
def short_folder():
    """A Unix socket's path ends at 107 bytes; pytest's own folders are too deep."""
    folder = Path(tempfile.mkdtemp(prefix="ns-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def node(vllm_context, tiny_model):
    folder = Path(tempfile.mkdtemp(prefix="ns-"))
    node = VllmNode(vllm_context, folder, tiny_model)
    try:
        node.start(node.spec(ASYNC, KvSpec(load_at_once_bytes=0), {}))
        node.start(node.spec(SYNC, KvSpec(async_load=False), {}))
        node.start(node.spec(SHORT, KvSpec(lease_ttl_s=0.0), {}))
        node.wait_ready(ASYNC, SYNC, SHORT)
        yield node
    finally:
        node.close()
        shutil.rmtree(folder)
