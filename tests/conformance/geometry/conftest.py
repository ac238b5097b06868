"""Tiny models of several architectures, and engines that cut their KV differently."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeserve.wire.spawn import KvSpec
from tests.support import vllm_entry
from tests.support.vllm_node import VllmNode, forkserver_context


@pytest.fixture(scope="session")
def vllm_context():
    with forkserver_context() as context:
        yield context


@contextmanager
def engines(
    context: Any, model: dict[str, Any], cuts: dict[int, tuple[int, dict[str, Any]]]
) -> Iterator[VllmNode]:
    """Serve a tiny model that differs as ``model`` says.

    Args:
        context: Of the forkserver with vLLM.
        model: Changes to the tiny model's configuration.
        cuts: By generation, tensor parallel size and engine arguments.
    """
    folder = Path(tempfile.mkdtemp(prefix="ns-"))
    node = VllmNode(context, folder, folder / "model")
    try:
        process = context.Process(
            target=vllm_entry.make_model, args=(str(node.model),), kwargs=model
        )
        process.start()
        process.join(50)
        assert process.exitcode == 0
        for generation, (tp, args) in cuts.items():
            node.start(node.spec(generation, KvSpec(), args, tp))
        node.wait_ready(*cuts)
        yield node
    finally:
        node.close()
        shutil.rmtree(folder)
