"""Reports cross processes as pickles; vLLM adds up those of all ranks in the child."""

import pytest

from tests.support import vllm_entry

pytestmark = pytest.mark.vllm


def test_reports_of_ranks_add_up_after_a_journey(vllm_context):
    ours, theirs = vllm_context.Pipe()
    process = vllm_context.Process(target=vllm_entry.sum_step_reports, args=(theirs,))
    process.start()
    assert ours.poll(60)
    assert ours.recv() == {"ended": {1: 2}, "failed": {1}, "load_bytes": 7, "handoff_bytes": 12}
    process.join(10)
