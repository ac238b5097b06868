import pytest

from nodeserve.device.health_table import read_table
from nodeserve.health.sample import Gauge
from nodeserve.wire.device_report import DeviceSample

TABLE = read_table()


def sample(**figures):
    return DeviceSample(meter="g", index=0, name="x", age_s=0.0, **figures)


def looks(signal, figures, step_s=1.0):
    """What the row says of samples a step apart."""
    gauge = Gauge(TABLE[signal])
    return [
        gauge.look(sample(**figure), now_s=place * step_s).is_
        for place, figure in enumerate(figures)
    ]


@pytest.mark.parametrize("signal", [s for s, row in TABLE.items() if row.source == "sample"])
def test_a_device_that_says_nothing_is_never_called_bad_at_once(signal):
    assert looks(signal, [{}])[0] != "bad"


def test_a_level_is_bad_at_once_where_the_row_does_not_wait():
    figures = [{"remap_pending": False}, {"remap_pending": True}, {}]
    assert looks("remap_pending", figures) == ["good", "bad", "unknown"]


def test_a_level_that_must_last_is_unknown_until_it_has():
    figures = [{"temperature_c": 90}] * 4 + [{"temperature_c": 80}, {"temperature_c": 90}]
    found = looks("temperature", figures, step_s=20.0)
    assert found == ["unknown", "unknown", "unknown", "bad", "good", "unknown"]


def test_a_counter_is_judged_by_its_growth_within_the_window_and_not_by_its_height():
    figures = [{"pcie_replays": count} for count in (10_000, 10_020, 10_031, 10_031, 10_031)]
    found = looks("pcie_replays", figures, step_s=20.0)
    assert found == ["good", "good", "bad", "bad", "good"]


def test_a_counter_that_falls_begins_anew():
    figures = [{"pcie_replays": count} for count in (500, 0, 30)]
    assert looks("pcie_replays", figures) == ["good", "good", "good"]


def test_a_reason_is_bad_once_it_held_for_most_of_the_window():
    hot = {"throttle_reasons": ("hw_slowdown",)}
    found = looks("hw_slowdown", [hot] * 370)
    assert found.index("bad") == 360
    found = looks("hw_slowdown", [hot, {}] * 400)
    assert "bad" not in found


def test_time_in_which_nobody_looked_counts_for_little():
    hot = {"throttle_reasons": ("hw_slowdown",)}
    assert "bad" not in looks("hw_slowdown", [hot] * 20, step_s=100.0)


def test_power_that_cannot_be_read_is_noticed_after_a_minute():
    assert looks("power_unreadable", [{}] * 4, step_s=20.0)[-1] == "bad"
    assert looks("power_unreadable", [{"power_mw": 1}] * 4, step_s=20.0)[-1] == "good"
    assert looks("power_zero", [{"power_mw": 0}] * 4, step_s=20.0)[-1] == "bad"
