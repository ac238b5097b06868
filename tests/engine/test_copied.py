from nodeserve.engine.copied import Copied


def test_copies_are_added_up_and_taken_once():
    copied = Copied()
    copied.add(4096, 0.001)
    copied.add(100, 0.0000004)
    assert copied.take() == (4196, 1000)
    assert copied.take() == (0, 0)
