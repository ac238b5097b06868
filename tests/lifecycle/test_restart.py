from nodeserve.lifecycle.restart import RestartHistory, RestartPolicy


def test_the_delay_doubles_with_each_death_in_the_window():
    history = RestartHistory(RestartPolicy(first_delay_s=0.5, max_delay_s=60, max_deaths=5))
    assert [history.note_death(float(at_s)) for at_s in range(4)] == [0.5, 1.0, 2.0, 4.0]


def test_the_delay_has_a_ceiling():
    history = RestartHistory(RestartPolicy(first_delay_s=10, max_delay_s=15, max_deaths=9))
    assert [history.note_death(1.0) for _ in range(3)] == [10, 15, 15]


def test_one_death_too_many_within_the_window_gives_up():
    history = RestartHistory(RestartPolicy(max_deaths=2, window_s=100))
    assert history.note_death(0.0) is not None
    assert history.note_death(1.0) is not None
    assert history.note_death(2.0) is None


def test_deaths_outside_the_window_do_not_count():
    history = RestartHistory(RestartPolicy(max_deaths=1, window_s=100))
    assert history.note_death(0.0) == 0.5
    assert history.note_death(101.0) == 0.5


def test_forgiving_starts_the_count_again():
    history = RestartHistory(RestartPolicy(max_deaths=1))
    history.note_death(0.0)
    history.forgive()
    assert history.note_death(1.0) == 0.5
