import pytest

from nodeserve.lifecycle.restart import RestartHistory, RestartPolicy

EXACT = RestartPolicy(first_delay_s=0.5, max_delay_s=60, max_deaths=5, jitter=0)


def test_the_first_death_costs_no_delay_and_then_it_doubles_with_each_in_the_window():
    history = RestartHistory(EXACT)
    assert [history.note_death(float(at_s)) for at_s in range(5)] == [0.0, 0.5, 1.0, 2.0, 4.0]


def test_the_delay_has_a_ceiling():
    policy = RestartPolicy(first_delay_s=10, max_delay_s=15, max_deaths=9, jitter=0)
    history = RestartHistory(policy)
    assert [history.note_death(1.0) for _ in range(4)] == [0, 10, 15, 15]


def test_processes_that_die_together_come_back_one_after_another():
    delays = []
    for place in range(8):
        history = RestartHistory(place=place)
        history.note_death(0.0)
        delays.append(history.note_death(0.0))
    assert len(set(delays)) == len(delays)
    assert all(0.5 <= delay_s <= 0.6 for delay_s in delays)


def test_one_death_too_many_within_the_window_gives_up():
    history = RestartHistory(RestartPolicy(max_deaths=2, window_s=100))
    assert history.note_death(0.0) is not None
    assert history.note_death(1.0) is not None
    assert history.note_death(2.0) is None


def test_deaths_outside_the_window_do_not_count():
    history = RestartHistory(RestartPolicy(max_deaths=1, window_s=100))
    assert history.note_death(0.0) == pytest.approx(0.0)
    assert history.note_death(101.0) == pytest.approx(0.0)


def test_forgiving_starts_the_count_again():
    history = RestartHistory(RestartPolicy(max_deaths=1))
    history.note_death(0.0)
    history.forgive()
    assert history.note_death(1.0) == pytest.approx(0.0)
