"""Workers on GPUs that cannot read each other."""

import msgspec
import pytest

from nodeserve.config.node import Worker
from nodeserve.config.peer_paths import refuse_gaps
from nodeserve.config.problems import Problems
from nodeserve.wire.kinds import Role
from tests.config.conftest import node_of

NODE = node_of(4, 2)
UUIDS = [gpu.uuid for gpu in NODE.gpus]


def problems_of(gaps, *workers):
    problems = Problems("node.toml")
    refuse_gaps(workers, msgspec.structs.replace(NODE, peer_gaps=gaps), problems)
    return problems.errors


def worker(name, role, *gpus):
    return Worker(name=name, role=role, tp=len(gpus), gpu_uuids=tuple(UUIDS[i] for i in gpus))


P = worker("prefill-0", Role.PREFILL, 0, 1)
D = worker("decode-0", Role.DECODE, 2, 3)


def test_a_pair_of_ranks_without_a_path_is_refused_by_name():
    (said,) = problems_of(((3, 1),), P, D)
    assert "prefill-0 on GPU 1 and decode-0 on GPU 3: these GPUs cannot read" in said


@pytest.mark.parametrize("gaps", [None, (), ((0, 1), (2, 3), (0, 3))])
def test_what_ranks_do_not_need_is_no_problem(gaps):
    assert problems_of(gaps, P, D) == []


def test_workers_that_hand_nothing_over_need_no_path():
    both = [worker(f"aggregated-{i}", Role.AGGREGATED, i) for i in range(4)]
    assert problems_of(((0, 1), (2, 3)), *both) == []


def test_every_pair_is_named_once():
    decoders = [worker(f"decode-{i}", Role.DECODE, i) for i in (2, 3)]
    prefill = worker("prefill-0", Role.PREFILL, 0)
    assert len(problems_of(((0, 2), (0, 3)), prefill, *decoders)) == 2
