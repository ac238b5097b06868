import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.energy.series import Curve, Figure, Panel
from nodeserve.energy.svg import WIDTH, axis_ticks, nice_top, to_svg
from nodeserve.energy.utc import DAY_S, HOUR_S
from tests.support.energy_rows import TEN

VALUES = st.lists(st.one_of(st.none(), st.floats(0, 1e9)), max_size=50)


def a_figure(values, caption=()):
    hours = [TEN + n * HOUR_S for n in range(len(values))]
    return Figure(hours, (Panel("Power", "W", (Curve("all", values),)),), caption)


def paths(svg):
    found = ET.fromstring(svg).findall("{http://www.w3.org/2000/svg}path")
    return [path.get("d") for path in found if path.get("stroke-width")]


def texts(svg):
    return [text.text for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_hours_are_steps_joined_where_values_follow():
    (path,) = paths(to_svg(a_figure([0.0, 10.0])))
    assert path == "M72.0 189.0H504.0L504.0 39.0H936.0"


def test_an_unknown_hour_is_a_gap_and_not_zero():
    (path,) = paths(to_svg(a_figure([10.0, None, 10.0])))
    assert re.findall("[A-Z]", path) == ["M", "H", "M", "H"]
    assert "189.0" not in path


@pytest.mark.parametrize("values", [[], [None, None]])
def test_a_panel_without_any_value_says_unknown(values):
    svg = to_svg(a_figure(values))
    assert (paths(svg), "unknown" in texts(svg)) == ([], True)


def test_captions_are_text_whatever_is_in_them():
    assert '<&"> of n1' in texts(to_svg(a_figure([1.0], ['<&"> of n1'])))


@given(VALUES)
def test_everything_lies_within_the_picture(values):
    svg = to_svg(a_figure(values))
    height = float(ET.fromstring(svg).get("height"))
    for path in paths(svg):
        for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path):
            assert 0 <= float(x) <= WIDTH
            assert 0 <= float(y) <= height


@given(st.floats(1e-9, 1e12))
def test_axes_end_at_1_2_or_5_and_take_the_largest(largest):
    top = nice_top(largest)
    assert largest <= top * (1 + 1e-9)
    assert f"{top:.0e}"[0] in "125"
    assert top <= 10 * largest


def test_an_axis_of_nothing_ends_at_1():
    assert [nice_top(value) for value in (0.0, float("nan"), float("inf"))] == [1.0, 1.0, 1.0]


@given(st.integers(1, 24 * 400))
def test_ticks_are_few_and_at_whole_hours_or_days(num_hours):
    hours = [TEN + n * HOUR_S for n in range(num_hours)]
    ticks = axis_ticks(hours)
    assert len(ticks) <= 9
    assert all(hours[0] <= at <= hours[-1] + HOUR_S and at % HOUR_S == 0 for at, _ in ticks)
    assert num_hours < 3 or ticks


def test_long_times_are_named_by_day():
    assert axis_ticks(range(TEN, TEN + 8 * DAY_S, HOUR_S))[0][1] == "2026-03-11"
    assert axis_ticks(range(TEN, TEN + 5 * HOUR_S, HOUR_S))[0][1] == "03-10T10:00"
