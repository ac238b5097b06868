from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.energy.carbon_hold import WORTH_WAITING, decide_hold
from nodeserve.energy.intensity import Interval, Kind, Origin, Scope
from nodeserve.energy.utc import HOUR_S
from nodeserve.errors import InvariantError
from tests.support.energy_rows import TEN

ORIGIN = Origin(source="a forecast", vintage="2026", licence="ours")
NOW = TEN + 600.0


def a_forecast(*grams, kind=Kind.MARGINAL, zone="DEU"):
    return [
        Interval(
            zone=zone,
            begin_unix_s=TEN + n * HOUR_S,
            end_unix_s=TEN + (n + 1) * HOUR_S,
            g_per_kwh=Fraction(gram),
            kind=kind,
            scope=Scope.LIFECYCLE,
            is_estimate=True,
            origin=ORIGIN,
        )
        for n, gram in enumerate(grams)
    ]


def start(forecast, hours, now=NOW):
    found = decide_hold(forecast, now_unix_s=now, deadline_unix_s=now + hours * HOUR_S)
    return found.start_unix_s, found.now_g_per_kwh, found.then_g_per_kwh


def test_it_waits_for_the_cleanest_hour_within_the_deadline():
    forecast = a_forecast(400, 300, 200, 100)
    assert start(forecast, 2) == (TEN + 2 * HOUR_S, 400, 200)
    assert start(forecast[::-1], 9) == (TEN + 3 * HOUR_S, 400, 100)


def test_of_equally_clean_hours_the_first_is_taken():
    assert start(a_forecast(400, 200, 200), 9)[0] == TEN + HOUR_S


def test_a_small_gain_is_not_worth_waiting():
    assert start(a_forecast(400, 381), 9) == (NOW, 400, 400)
    assert start(a_forecast(400, 380), 9) == (TEN + HOUR_S, 400, 380)


def test_a_deadline_before_the_next_hour_means_now():
    assert start(a_forecast(400, 1), 0.5) == (NOW, 400, 400)
    assert start(a_forecast(400, 1), -1) == (NOW, 400, 400)
    assert start(a_forecast(400, 1), 3_000 / HOUR_S)[0] == TEN + HOUR_S


def test_what_is_unknown_is_no_reason_to_wait():
    assert start([], 9) == (NOW, None, None)
    assert start(a_forecast(400, 1)[1:], 9) == (NOW, None, None)


def test_a_month_s_mean_is_not_compared_with_an_hour_s():
    month = Interval(
        zone="DEU",
        begin_unix_s=TEN + HOUR_S,
        end_unix_s=TEN + 24 * HOUR_S,
        g_per_kwh=Fraction(1),
        kind=Kind.MARGINAL,
        scope=Scope.LIFECYCLE,
        is_estimate=True,
        origin=ORIGIN,
    )
    assert start([*a_forecast(400, 399), month], 9)[0] == NOW


@pytest.mark.parametrize("other", [{"kind": Kind.AVERAGE}, {"zone": "FRA"}])
def test_kinds_and_zones_are_not_mixed(other):
    with pytest.raises(InvariantError, match="several zones or kinds"):
        start([*a_forecast(400), *a_forecast(300, **other)], 9)


@given(st.lists(st.integers(1, 999), max_size=12), st.floats(-2, 14), st.floats(0, 12))
def test_it_never_starts_late_nor_for_a_dirtier_hour(grams, hours, begun):
    now = TEN + begun * HOUR_S
    forecast = a_forecast(*grams)
    start_s, now_g, then_g = start(forecast, hours, now)
    assert now <= start_s <= max(now, now + hours * HOUR_S)
    if start_s > now:
        assert then_g <= now_g * WORTH_WAITING
