"""Records go to the directory that has the least to do, in turns where that is equal."""

from nodeserve.kv.disk_stripe import next_directory


def test_equal_directories_take_turns() -> None:
    assert [next_directory([0, 0, 0], turn) for turn in range(5)] == [0, 1, 2, 0, 1]


def test_the_directory_with_the_least_to_write_is_next() -> None:
    assert [next_directory([9, 4, 5], turn) for turn in range(3)] == [1, 1, 1]
