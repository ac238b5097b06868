import pytest

from nodeserve.monitor.call_marks import DRIVER, FIRST_REST_S, MAX_REST_S, CallMarks

NAMES = ("g0", "g1", "g2")


@pytest.fixture
def open_marks(tmp_path):
    return lambda now_s: CallMarks(tmp_path, NAMES, now_s)


@pytest.fixture
def hang():
    """Ask a device that does not answer, and die: the call does not end."""
    calls = []

    def hang(marks, name, now_s):
        calls.append(marks.asking(name, now_s))
        calls[-1].__enter__()

    return hang


def test_a_device_that_answers_is_not_blamed(open_marks):
    marks = open_marks(10.0)
    with marks.asking("g1", 10.0):
        pass
    with pytest.raises(RuntimeError), marks.asking("g2", 10.0):
        raise RuntimeError
    assert open_marks(100.0).hung == set()


@pytest.mark.parametrize("name", [DRIVER, *NAMES])
def test_a_device_that_did_not_answer_is_left_alone_by_the_successor(open_marks, hang, name):
    hang(open_marks(10.0), name, 20.0)
    marks = open_marks(22.0)
    assert marks.hung == {name}
    assert marks.rested(22.0) == []
    assert marks.rested(22.0 + FIRST_REST_S) == [name]


def test_a_monitor_that_died_at_once_died_of_something_else(open_marks, hang):
    hang(open_marks(10.0), "g1", 20.0)
    assert open_marks(20.5).hung == set()
    assert open_marks(99.0).hung == set(), "nor is it blamed later"


def test_who_hangs_again_rests_twice_as_long(open_marks, hang):
    hang(open_marks(0.0), "g1", 0.0)
    marks = open_marks(2.0)
    hang(marks, "g1", 62.0)
    marks = open_marks(64.0)
    assert marks.rested(64.0 + 2 * FIRST_REST_S - 1) == []
    assert marks.rested(64.0 + 2 * FIRST_REST_S) == ["g1"]


def test_nobody_rests_for_ever(open_marks, hang):
    now_s = 0.0
    for _ in range(40):
        hang(open_marks(now_s), "g1", now_s)
        now_s += 2.0
    assert open_marks(now_s).rested(now_s + MAX_REST_S) == ["g1"]


def test_who_answers_for_good_is_as_good_as_new(open_marks, hang):
    hang(open_marks(0.0), "g1", 0.0)
    marks = open_marks(2.0)
    marks.answered("g1")
    assert marks.hung == set()
    hang(marks, "g1", 100.0)
    assert open_marks(102.0).rested(102.0 + FIRST_REST_S) == ["g1"]


def test_a_successor_of_a_successor_still_knows(open_marks, hang):
    hang(open_marks(0.0), "g1", 0.0)
    open_marks(2.0).close()
    assert open_marks(4.0).hung == {"g1"}
