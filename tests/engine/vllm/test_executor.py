"""Where an engine's process group keeps its file, and what several ranks leave and end with."""

import pytest

from nodeserve.config.paths import engine_stores
from tests.engine.vllm.conftest import ASYNC, SYNC
from tests.support import vllm_entry

pytestmark = pytest.mark.vllm


def test_the_process_groups_file_lies_in_the_runtime_directory(node) -> None:
    assert all(len(engine_stores(node.folder, generation)) == 1 for generation in (ASYNC, SYNC))


@pytest.mark.parametrize("check", ["ranks_of_which_one_died", "ranks_that_end"])
def test_one_dead_rank_is_the_end_of_all(vllm_context, check):
    assert vllm_entry.ask(vllm_context, vllm_entry.check_ranks, check) == "as it should be"
