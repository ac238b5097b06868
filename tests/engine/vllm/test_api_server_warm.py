"""Claims about building the API server before forking."""

import pytest

from tests.support import vllm_entry

pytestmark = pytest.mark.vllm


def test_it_starts_no_thread_and_leaves_nothing_to_import_to_the_children(vllm_context):
    ours, theirs = vllm_context.Pipe()
    process = vllm_context.Process(target=vllm_entry.build_front_end_twice, args=(theirs,))
    process.start()
    assert ours.poll(120)
    threads_more, modules_more = ours.recv()
    process.join(10)
    assert threads_more == 0
    assert modules_more == []
