from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.energy.intensity import (
    Factor,
    Intensities,
    Interval,
    Kind,
    Origin,
    Scope,
    Tier,
    Yearly,
)
from nodeserve.energy.utc import HOUR_S, parse_utc
from nodeserve.errors import ConfigError

ORIGIN = Origin(source="a grid", vintage="2026", licence="ours")
TEN = parse_utc("2026-03-10T10:00Z")


def a_year(zone, year, grams, kind=Kind.AVERAGE, alias=""):
    return Yearly(
        zone=zone,
        alias=alias,
        year=year,
        g_per_kwh=Fraction(grams),
        kind=kind,
        scope=Scope.LIFECYCLE,
        origin=ORIGIN,
    )


def an_interval(begin, end, grams, **changes):
    given_ = {
        "zone": "DEU",
        "begin_unix_s": parse_utc(begin),
        "end_unix_s": parse_utc(end),
        "g_per_kwh": Fraction(grams),
        "kind": Kind.AVERAGE,
        "scope": Scope.LIFECYCLE,
        "is_estimate": False,
        "origin": ORIGIN,
    }
    return Interval(**{**given_, **changes})


TABLE = (
    a_year("WORLD", 2024, 473),
    a_year("DEU", 2023, 381, alias="DE"),
    a_year("DEU", 2024, 342, alias="DE"),
    a_year("USA", 2024, 384, alias="US"),
)


def look_up(*intervals, zone="DEU", at=TEN, constant=None):
    factor = Intensities(TABLE, intervals, constant).book_factor(zone, at)
    return factor.g_per_kwh, factor.tier, factor.is_estimate


def test_an_hour_comes_before_a_month_a_year_and_the_table():
    hour = an_interval("2026-03-10T10:00", "2026-03-10T11:00", 100)
    month = an_interval("2026-03-01", "2026-04-01", 200)
    year = an_interval("2026-01-01", "2027-01-01", 300)
    assert look_up(hour, month, year) == (100, Tier.HOUR, False)
    assert look_up(month, year) == (200, Tier.MONTH, False)
    assert look_up(year) == (300, Tier.YEAR, False)
    assert look_up() == (342, Tier.YEAR, True)
    assert look_up(hour, zone="FRA") == (473, Tier.WORLD, True)


def test_parts_of_an_hour_are_weighted_by_their_time():
    halves = (
        an_interval("2026-03-10T10:00", "2026-03-10T10:15", 100),
        an_interval("2026-03-10T10:15", "2026-03-10T11:00", 200, is_estimate=True),
    )
    assert look_up(*halves) == (175, Tier.HOUR, True)


def test_an_hour_with_a_gap_in_it_falls_back_and_nothing_is_interpolated():
    around = (
        an_interval("2026-03-10T09:00", "2026-03-10T10:00", 90),
        an_interval("2026-03-10T10:00", "2026-03-10T10:30", 100),
        an_interval("2026-03-10T10:31", "2026-03-10T11:00", 200),
        an_interval("2026-03-10T11:00", "2026-03-10T12:00", 110),
    )
    assert look_up(*around) == (342, Tier.YEAR, True)


def test_intervals_end_before_their_end():
    first = an_interval("2026-03-10T09:00", "2026-03-10T10:00", 90)
    second = an_interval("2026-03-10T10:00", "2026-03-10T11:00", 100)
    assert look_up(first, second) == (100, Tier.HOUR, False)
    assert look_up(first, second, at=TEN - HOUR_S) == (90, Tier.HOUR, False)
    assert look_up(first, second, at=TEN + HOUR_S) == (342, Tier.YEAR, True)


def test_marginal_intensities_are_never_booked():
    marginal = an_interval("2026-03-10T10:00", "2026-03-10T11:00", 700, kind=Kind.MARGINAL)
    assert look_up(marginal) == (342, Tier.YEAR, True)
    table = (*TABLE, a_year("DEU", 2026, 700, kind=Kind.MARGINAL))
    assert Intensities(table).book_factor("DEU", TEN).g_per_kwh == 342


def test_the_table_gives_the_hour_s_year_else_the_last_before_else_the_first():
    assert look_up(at=parse_utc("2024-06-01")) == (342, Tier.YEAR, False)
    assert look_up(at=parse_utc("2023-06-01")) == (381, Tier.YEAR, False)
    assert look_up(at=parse_utc("2020-06-01")) == (381, Tier.YEAR, True)


def test_a_region_and_another_name_find_their_country():
    assert look_up(zone="DE")[0] == 342
    factor = Intensities(TABLE).book_factor("US-CAL-CISO", TEN)
    assert (factor.zone, factor.g_per_kwh) == ("USA", 384)


def test_no_zone_is_the_world_s():
    assert look_up(zone="")[1] is Tier.WORLD
    assert look_up(zone="WORLD")[1] is Tier.WORLD


def test_a_constant_stands_before_the_table_and_behind_the_series():
    constant = Factor(
        zone="any",
        g_per_kwh=Fraction(50),
        tier=Tier.CONSTANT,
        kind=Kind.AVERAGE,
        scope=Scope.LIFECYCLE,
        is_estimate=True,
        origin=ORIGIN,
    )
    hour = an_interval("2026-03-10T10:00", "2026-03-10T11:00", 100)
    assert look_up(constant=constant) == (50, Tier.CONSTANT, True)
    assert look_up(hour, constant=constant) == (100, Tier.HOUR, False)


def test_a_table_without_the_world_is_refused():
    with pytest.raises(ConfigError, match="lacks the zone WORLD"):
        Intensities(TABLE[1:])


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(0, 47))
def test_the_mean_over_covered_hours_is_that_of_every_minute(lengths, hour):
    intervals, minute = [], 0
    by_minute = {}
    for number, length in enumerate(lengths):
        begin, end = TEN + 60 * minute, TEN + 60 * (minute + length)
        grams = Fraction(number * 7 + 1)
        intervals.append(
            an_interval("1970-01-01", "1970-01-02", grams, begin_unix_s=begin, end_unix_s=end)
        )
        by_minute |= dict.fromkeys(range(minute, minute + length), grams)
        minute += length
    wanted = [by_minute.get(60 * hour + minute) for minute in range(60)]
    grams, tier, _ = look_up(*intervals, at=TEN + hour * HOUR_S)
    if None in wanted:
        assert tier is Tier.YEAR
    else:
        assert (grams, tier) == (sum(wanted, Fraction()) / 60, Tier.HOUR)
