"""Where units are crossed: each pair once, and exactly.

Energy is booked in integer mJ. Everything derived from it is a Fraction until it is rounded once,
to integer micrograms of CO2e or millionths of a currency, by ``apportion``.
"""

from fractions import Fraction
from typing import Final

_MJ_PER_J: Final = 1_000
_MJ_PER_KWH: Final = 3_600_000_000
_UG_PER_G: Final = 1_000_000
_G_PER_KG: Final = 1_000
_MS_PER_HOUR: Final = 3_600_000
_HOURS_PER_YEAR: Final = 8_766
_MILLION: Final = 1_000_000
_THOUSAND: Final = 1_000


def joules(energy_mj: int) -> Fraction:
    """Return mJ as J."""
    return Fraction(energy_mj, _MJ_PER_J)


def kilowatt_hours(energy_mj: int) -> Fraction:
    """Return mJ as kWh."""
    return Fraction(energy_mj, _MJ_PER_KWH)


def watts(energy_mj: int, duration_s: float) -> float:
    """Return the mean power in W over ``duration_s``, which must be above 0."""
    return energy_mj / _MJ_PER_J / duration_s


def grams_of_kg(mass_kg: Fraction) -> Fraction:
    """Return kg as g."""
    return mass_kg * _G_PER_KG


def micrograms(mass_g: Fraction) -> Fraction:
    """Return g as micrograms, not yet rounded."""
    return mass_g * _UG_PER_G


def grams(mass_ug: int) -> Fraction:
    """Return micrograms as g."""
    return Fraction(mass_ug, _UG_PER_G)


def hours(duration_ms: int) -> Fraction:
    """Return milliseconds as hours."""
    return Fraction(duration_ms, _MS_PER_HOUR)


def hours_of_years(years: Fraction) -> Fraction:
    """Return years of 365.25 days as hours."""
    return years * _HOURS_PER_YEAR


def millionths(amount: Fraction) -> Fraction:
    """Return an amount of a currency in millionths of it, not yet rounded."""
    return amount * _MILLION


def amount(amount_millionths: int) -> Fraction:
    """Return millionths of a currency as an amount of it."""
    return Fraction(amount_millionths, _MILLION)


def per_thousand(amount_of_all: Fraction, count: int) -> Fraction:
    """Return how much of an amount falls on a thousand of ``count``, which must be above 0."""
    return amount_of_all * _THOUSAND / count


def per_million(amount_of_all: Fraction, count: int) -> Fraction:
    """Return how much of an amount falls on a million of ``count``, which must be above 0."""
    return amount_of_all * _MILLION / count
