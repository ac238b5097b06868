"""Software carbon intensity: SCI = (E * I + M) / R. Source: ISO/IEC 21031:2024.

E is all energy, of what is provisioned and not only of what is used, with PUE inside it. I is the
location-based average intensity. M is the embodied carbon of the time that the hardware was held.
R is what is counted: tokens here, as SCI for AI wants it.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from nodeserve.energy.intensity import Factor, Kind
from nodeserve.energy.units import grams_of_kg, hours, hours_of_years, kilowatt_hours, per_million
from nodeserve.errors import ConfigError, InvariantError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pue:
    """Power usage effectiveness: energy of the site by energy of its computers, at least 1."""

    value: Fraction = Fraction(1)
    source: str = "not supplied"

    def __post_init__(self) -> None:
        """Refuse what no site can have."""
        if not 1 <= self.value <= 10:
            raise ConfigError(f"pue is {float(self.value):g}: a site has 1 or more, and some 1.1-2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sites:
    """The PUE of each zone's site; ``elsewhere`` is for the others."""

    elsewhere: Pue = field(default_factory=Pue)
    by_zone: Mapping[str, Pue] = field(default_factory=dict)

    def pue_of(self, zone: str) -> Pue:
        """Return the PUE of the site in ``zone``."""
        return self.by_zone.get(zone, self.elsewhere)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embodied:
    """What it emitted to make a device and its share of the server around it.

    ``match`` is part of the device's name, in any case. ``life_years`` is how long the hardware
    is used, over which that is spread evenly.
    """

    match: str
    device_kg: Fraction
    server_kg: Fraction
    devices_per_server: int
    life_years: Fraction
    source: str

    @property
    def g_per_device_hour(self) -> Fraction:
        """What an hour of one device stands for, used or not."""
        mass_kg = self.device_kg + self.server_kg / self.devices_per_server
        return grams_of_kg(mass_kg) / hours_of_years(self.life_years)


def operational_g(energy_mj: int, pue: Pue, factor: Factor) -> Fraction:
    """Return E * I in g: what ``energy_mj``, as metered, stands for with the site around it.

    Raises:
        InvariantError: The factor is marginal, which has no place in the books.
    """
    if factor.kind is not Kind.AVERAGE:
        raise InvariantError(f"{factor.zone}: a {factor.kind} intensity cannot be booked")
    return kilowatt_hours(energy_mj) * pue.value * factor.g_per_kwh


def embodied_g(held_ms: int, embodied: Embodied) -> Fraction:
    """Return M in g: what holding a device for ``held_ms`` stands for."""
    return hours(held_ms) * embodied.g_per_device_hour


def sci_g_per_million(operational: Fraction, embodied: Fraction, count: int) -> Fraction:
    """Return (E * I + M) / R in g for a million of ``count``, which must be above 0."""
    return per_million(operational + embodied, count)


def parse_embodied(text: str) -> list[Embodied]:
    """Return the rows of the shipped table of embodied carbon."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [
        Embodied(
            match=row["match"],
            device_kg=Fraction(row["device_kg"]),
            server_kg=Fraction(row["server_kg"]),
            devices_per_server=int(row["devices_per_server"]),
            life_years=Fraction(row["life_years"]),
            source=row["source"],
        )
        for row in csv.DictReader(lines)
    ]


def find_embodied(device: str, known: Iterable[Embodied]) -> Embodied | None:
    """Return the first row that fits a device's name; None where its making is unknown."""
    return next((row for row in known if row.match.lower() in device.lower()), None)
