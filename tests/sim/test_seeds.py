"""Every seed is a node with its own faults; nothing may be lost, repeated or left over."""

import pytest

from nodeserve.sim.faults import plan_of
from nodeserve.sim.run import describe, run, shortest

SEEDS = 2000
SEEDS_AT_A_TIME = 100


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_AT_A_TIME))
def test_whatever_goes_wrong_every_request_ends_once_and_whole(first: int) -> None:
    for seed in range(first, first + SEEDS_AT_A_TIME):
        failure = run(plan_of(seed))
        assert failure is None, "\n".join(describe(shortest(failure)))
