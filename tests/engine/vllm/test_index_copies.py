"""Small pieces within one device: which way they are copied, and that all of them are."""

import pytest

from tests.support import vllm_entry

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    "check",
    [
        "pieces_land_where_they_should",
        "what_is_gathered_at_a_time_is_bounded",
        "large_and_odd_pieces_are_copied_one_by_one",
    ],
)
def test_index_copies(vllm_context, check):
    ours, theirs = vllm_context.Pipe()
    process = vllm_context.Process(target=vllm_entry.check_index_copies, args=(check, theirs))
    process.start()
    assert ours.poll(60)
    assert ours.recv() == "as it should be"
    process.join()
