from nodeserve.health.window import Window


def test_what_is_older_than_the_window_is_forgotten():
    window = Window(10.0)
    assert window.add(2, 0.0) == 2
    assert window.add(3, 5.0) == 5
    assert window.add(0, 9.9) == 5
    assert window.add(0, 10.0) == 3
    assert window.add(1, 15.0) == 1


def test_nothing_is_kept_of_what_does_not_happen():
    window = Window(10.0)
    for at_s in range(1000):
        window.add(0, float(at_s))
    assert not window._kept
