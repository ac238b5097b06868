from fractions import Fraction
from importlib.resources import files

import pytest

from nodeserve.energy.intensity import Factor, Kind, Origin, Scope, Tier
from nodeserve.energy.sci import (
    Embodied,
    Pue,
    embodied_g,
    find_embodied,
    operational_g,
    parse_embodied,
    sci_g_per_million,
)
from nodeserve.energy.units import grams_of_kg
from nodeserve.errors import ConfigError, InvariantError

HOUR_MS = 3_600_000


def a_factor(grams="342.06", kind=Kind.AVERAGE):
    return Factor(
        zone="DEU",
        g_per_kwh=Fraction(grams),
        tier=Tier.YEAR,
        kind=kind,
        scope=Scope.LIFECYCLE,
        is_estimate=False,
        origin=Origin(source="Ember", vintage="2025", licence="CC BY 4.0"),
    )


def shipped():
    return parse_embodied(
        files("nodeserve.energy").joinpath("data/embodied.csv").read_text("utf-8")
    )


def test_the_example_of_sci_for_ai_is_130_g_per_million_tokens():
    """Its text says 0.13 g: 6,500 kg over 50 billion tokens are a thousand times as much."""
    assert sci_g_per_million(grams_of_kg(Fraction(6_500)), Fraction(), 50 * 10**9) == 130


def test_pue_is_inside_the_energy():
    kilowatt_hour_mj = 3_600_000_000
    pue = Pue(value=Fraction("1.2"), source="site")
    assert operational_g(kilowatt_hour_mj, Pue(), a_factor()) == Fraction("342.06")
    assert operational_g(kilowatt_hour_mj, pue, a_factor()) == Fraction("342.06") * Fraction("1.2")
    assert operational_g(2 * kilowatt_hour_mj, pue, a_factor("100")) == 240


def test_a_marginal_intensity_cannot_be_booked():
    with pytest.raises(InvariantError, match="a marginal intensity cannot be booked"):
        operational_g(1, Pue(), a_factor(kind=Kind.MARGINAL))


@pytest.mark.parametrize("value", ["0.9", "0", "12"])
def test_a_pue_that_no_site_has_is_refused(value):
    with pytest.raises(ConfigError, match="a site has 1 or more"):
        Pue(value=Fraction(value))


def test_an_hour_of_an_h100_stands_for_25_g():
    h100 = find_embodied("NVIDIA H100 80GB HBM3", shipped())
    assert float(h100.g_per_device_hour) == pytest.approx(25.0, abs=0.01)
    assert embodied_g(HOUR_MS // 2, h100) * 2 == h100.g_per_device_hour
    assert "4 years assumed" in h100.source


def test_what_is_known_of_no_device_is_unknown_and_not_zero():
    assert find_embodied("NVIDIA L40S", shipped()) is None


def test_the_first_row_that_fits_wins():
    rows = [
        Embodied(
            match=match,
            device_kg=Fraction(100),
            server_kg=Fraction(),
            devices_per_server=1,
            life_years=Fraction(1),
            source="ours",
        )
        for match in ("a100-sxm", "a100")
    ]
    assert find_embodied("NVIDIA A100-SXM4-80GB", rows) is rows[0]
    assert find_embodied("NVIDIA A100-PCIE-40GB", rows) is rows[1]
