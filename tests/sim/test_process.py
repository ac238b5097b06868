"""Claims about how simulated processes end."""

from nodeserve.ids import Generation
from nodeserve.sim.node import SimNode
from nodeserve.sim.process import Process
from tests.sim.plans import PAIR, told


def made() -> tuple[SimNode, Process]:
    node = SimNode(PAIR, is_told=True)
    return node, Process(node, "forkserver", Generation(9))


def test_a_process_ends_once_and_soon_after_a_signal() -> None:
    node, process = made()
    process.kill()
    process.terminate()
    while node.queue.run_next():
        pass
    assert not process.alive
    assert told(node, "forkserver (generation 9) was killed")
    assert not told(node, "ended as asked")


def test_a_deaf_process_takes_its_time() -> None:
    node, process = made()
    process.deaf_s = 3.0
    process.kill()
    assert node.queue.run_next()
    assert 3.0 <= node.queue.now_s() < 3.1


def test_messages_may_come_twice_or_get_lost_a_given_number_of_times() -> None:
    _, process = made()
    process.num_repeats, process.num_drops = 2, 1
    assert [process.times() for _ in range(3)] == [2, 2, 1]
    assert [process.times(may_be_lost=True) for _ in range(2)] == [0, 1]
