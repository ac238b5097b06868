"""Claims about connections between simulated processes."""

from nodeserve.sim.event_queue import EventQueue
from nodeserve.sim.links import Link


def linked(*delays_s: float) -> tuple[EventQueue, Link[str], list[tuple[str, float]]]:
    queue, seen, delays = EventQueue(), [], iter(delays_s)
    link = Link(queue, lambda: next(delays), lambda text: seen.append((text, queue.now_s())))
    return queue, link, seen


def test_a_slow_message_holds_back_those_behind_it() -> None:
    queue, link, seen = linked(3.0, 1.0)
    link.send("slow")
    link.send("quick")
    while queue.run_next():
        pass
    assert seen == [("slow", 3.0), ("quick", 3.0)]


def test_what_is_under_way_when_a_link_is_cut_is_lost() -> None:
    queue, link, seen = linked(1.0, 2.0)
    link.send("came")
    link.send("lost")
    assert queue.run_next()
    link.cut()
    assert queue.run_next()
    assert seen == [("came", 1.0)]
