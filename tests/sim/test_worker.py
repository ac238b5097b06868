"""Claims about a worker's process and the engine in it."""

from nodeserve.ids import Generation
from nodeserve.sim.faults import FaultKind
from nodeserve.sim.node import SimNode
from nodeserve.sim.worker import SimWorker, limits_of
from tests.sim.plans import PAIR, fault, ran, request, told


def test_its_engine_has_the_planned_sizes() -> None:
    limits = limits_of(PAIR, PAIR.workers[0], Generation(3))
    assert (limits.generation, limits.num_blocks, limits.max_num_seqs) == (3, 20, 4)
    assert (limits.lease_ttl_s, limits.lease_slots) == (60.0, 16)


def test_it_loads_and_says_hello_once() -> None:
    node = SimNode(PAIR)
    worker = SimWorker(node, PAIR.workers[0], Generation(3))
    assert worker.engine is None
    for _ in range(10):
        node.queue.run_next()
    assert worker.engine is not None
    worker.check()


def test_it_is_attached_again_behind_the_next_dispatcher() -> None:
    node = ran(request(), fault(FaultKind.KILL, "dispatcher"))
    attached = [line for line in node.story.lines if "router hears: worker attached" in line]
    assert [line.count("generation 3") for line in attached].count(1) == 2


def test_a_slow_one_takes_longer() -> None:
    quick, slow = ran(request()), ran(request(), fault(FaultKind.SLOW, "decode-1", 10.0, at_s=0.4))
    assert _answered_s(slow) > _answered_s(quick) + 0.5


def _answered_s(node: SimNode) -> float:
    (line,) = [line for line in node.story.lines if "has answered" in line]
    return float(line.split()[0])


def test_one_that_stands_still_says_nothing_until_it_thaws() -> None:
    node = ran(request(max_tokens=20), fault(FaultKind.HANG, "decode-1", 0.5))
    assert _answered_s(node) > 1.1
    assert not told(node, "worker lost")
