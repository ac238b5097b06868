import pytest


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_a_started_block_counts_whole(limits_with, tokens, blocks):
    assert limits_with(block_size=4).num_blocks_for(tokens) == blocks
