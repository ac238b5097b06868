"""What ranks share loses its name, and works on."""

import pytest

from tests.support import vllm_entry

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("check", ["memory_of_one_engine", "queues_and_semaphores"])
def test_what_ranks_share_goes_on_without_a_name(vllm_context, check):
    assert vllm_entry.ask(vllm_context, vllm_entry.check_ranks, check) == "as it should be"
