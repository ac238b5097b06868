import pytest

from nodeserve.device.simulated_script import Change, extra_mj, parse_script, present
from nodeserve.errors import ConfigError

TEXT = """
# the second GPU suffers
10 1 temperature_c=91 extra_w=100
0 * extra_w=50   # all of them
20 1 xid=79 lost=1
"""


def test_a_line_is_of_one_device_or_of_all_in_the_order_of_time():
    changes = parse_script(TEXT, 2)
    assert changes[0] == [Change(0, "extra_w", 50)]
    assert [(c.at_s, c.key) for c in changes[1]] == [
        (0, "extra_w"),
        (10, "temperature_c"),
        (10, "extra_w"),
        (20, "xid"),
        (20, "lost"),
    ]


def test_what_was_said_last_holds_and_an_event_does_not():
    (changes,) = parse_script("0 0 throttle=1\n5 0 throttle=64 xid=13\n9 0 throttle=0\n", 1)
    assert [present(changes, at_s) for at_s in (-1, 4, 5, 9)] == [
        {},
        {"throttle": 1},
        {"throttle": 64},
        {"throttle": 0},
    ]


def test_extra_power_is_integrated_over_its_changes():
    (changes,) = parse_script("2 0 extra_w=100\n4 0 extra_w=300\n5 0 extra_w=0\n", 1)
    assert [extra_mj(changes, at_s) for at_s in (1, 3, 4, 5, 100)] == [
        0,
        100_000,
        200_000,
        500_000,
        500_000,
    ]


@pytest.mark.parametrize(
    "line", ["x 0 lost=1", "0 2 lost=1", "0", "0 0 lost", "0 0 lots=1", "0 0 lost=yes"]
)
def test_a_line_that_is_none_is_named(line):
    with pytest.raises(ConfigError, match="line 2"):
        parse_script(f"# head\n{line}\n", 2)
