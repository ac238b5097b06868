"""What the ranks of one worker report together."""

import pytest

from tests.support import vllm_entry

pytestmark = pytest.mark.vllm


def test_ranks_bytes_add_up_and_a_load_that_fails_on_all_of_them_fails_once(vllm_context) -> None:
    ours, theirs = vllm_context.Pipe()
    reports = [(100, 2.5, 1), (100, 0.0, 1), (60, 0.0, 0)]
    process = vllm_context.Process(target=vllm_entry.sum_reports, args=(reports, theirs))
    process.start()
    assert ours.poll(90)
    assert ours.recv() == (260, 2.5, 1)
    process.join(10)
