"""Claims about virtual time."""

from collections.abc import Callable
from functools import partial

from nodeserve.sim.event_queue import EventQueue


def run_all(queue: EventQueue) -> None:
    while queue.run_next():
        pass


def watched() -> tuple[EventQueue, list[tuple[object, float]], Callable[[object], None]]:
    queue, seen = EventQueue(), []
    return queue, seen, lambda what: seen.append((what, queue.now_s()))


def test_things_happen_by_time_and_then_in_the_order_they_were_scheduled() -> None:
    queue, seen, seen_at = watched()
    for name, delay_s in (("late", 2.0), ("first", 1.0), ("second", 1.0)):
        queue.after(delay_s, partial(seen_at, name))
    run_all(queue)
    assert seen == [("first", 1.0), ("second", 1.0), ("late", 2.0)]


def test_what_is_cancelled_does_not_happen() -> None:
    queue, seen = EventQueue(), []
    queue.after(1.0, lambda: seen.append("cancelled")).cancel()
    assert not queue.run_next()
    assert (seen, queue.now_s()) == ([], 0.0)


def test_a_leap_makes_what_was_due_meanwhile_late_and_keeps_its_order() -> None:
    queue, seen, seen_at = watched()
    for delay_s in (2.0, 1.0, 9.0):
        queue.after(delay_s, partial(seen_at, delay_s))
    queue.leap(5.0)
    run_all(queue)
    assert seen == [(1.0, 5.0), (2.0, 5.0), (9.0, 9.0)]


def test_time_never_goes_back() -> None:
    queue, seen = EventQueue(10.0), []
    queue.at(3.0, lambda: seen.append(queue.now_s()))
    run_all(queue)
    assert seen == [10.0]
