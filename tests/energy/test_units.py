from fractions import Fraction

import pytest

from nodeserve.energy import units


def test_a_kilowatt_hour_has_3_6_megajoules():
    assert units.kilowatt_hours(3_600_000_000) == 1
    assert units.joules(3_600_000_000) == 3_600_000


def test_500_w_over_an_hour_are_half_a_kilowatt_hour():
    energy_mj = 500 * 3_600 * 1_000
    assert units.kilowatt_hours(energy_mj) == Fraction(1, 2)
    assert units.watts(energy_mj, 3_600.0) == pytest.approx(500)


def test_masses_and_money_cross_and_come_back():
    assert units.grams_of_kg(Fraction(6_500)) == 6_500_000
    assert units.micrograms(Fraction(1)) == 1_000_000
    assert units.grams(1_500_000) == Fraction(3, 2)
    assert units.amount(int(units.millionths(Fraction("0.15")))) == Fraction("0.15")


def test_a_life_of_years_is_in_hours():
    assert units.hours_of_years(Fraction(4)) == 35_064
    assert units.hours(5_400_000) == Fraction(3, 2)


def test_amounts_per_thousand_and_million():
    assert units.per_thousand(Fraction(3), 2_000) == Fraction(3, 2)
    assert units.per_million(Fraction(3), 2_000) == 1_500
