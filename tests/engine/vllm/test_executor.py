"""Where an engine's process group keeps its file."""

import pytest

from nodeserve.config.paths import engine_store
from tests.engine.vllm.conftest import ASYNC, SYNC

pytestmark = pytest.mark.vllm


def test_the_process_groups_file_lies_in_the_runtime_directory(node) -> None:
    assert all(engine_store(node.folder, generation).is_file() for generation in (ASYNC, SYNC))
