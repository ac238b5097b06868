import sys
from fractions import Fraction
from pathlib import Path

import pytest

from nodeserve.cli.energy_factors import SHIPPED, find_factors, make_factors
from nodeserve.config.factors import (
    EmbodiedTable,
    FactorsFile,
    IntensityTable,
    PriceTable,
    SiteTable,
)
from nodeserve.energy.intensity import Tier
from nodeserve.energy.sci import find_embodied
from nodeserve.errors import ConfigError, PeerError
from tests.support.energy_rows import H100, TEN

HEADING = "zone,start_utc,end_utc,g_per_kwh,kind,scope,estimated,source,licence,vintage\n"
HOUR = "DEU,2026-03-10T10:00Z,2026-03-10T11:00Z,310.5,average,direct,false,TSO,CC0,2026\n"


def of_command(*program):
    return FactorsFile(intensity=IntensityTable(command=(sys.executable, "-c", *program)))


def test_without_a_file_the_shipped_factors_stand(tmp_path):
    factors, name = find_factors(None, [tmp_path])
    assert name == SHIPPED
    assert factors.intensities.book_factor("DEU", TEN).g_per_kwh == Fraction("342.06")
    assert factors.sites.pue_of("DEU").source == "not supplied"
    assert find_embodied(H100, factors.embodied) is not None
    assert factors.prices is None


def test_a_file_beside_the_ledger_is_found_and_one_that_is_named_wins(tmp_path):
    beside, named = tmp_path / "factors.toml", tmp_path / "mine.toml"
    beside.write_text('currency = "EUR"\n')
    named.write_text('currency = "SEK"\n')
    factors, name = find_factors(None, [tmp_path / "none", tmp_path])
    assert (factors.prices.currency, name) == ("EUR", str(beside))
    assert find_factors(str(named), [tmp_path])[0].prices.currency == "SEK"


def test_numbers_are_those_of_the_file_and_not_their_nearest_binary_ones():
    file = FactorsFile(
        currency="EUR",
        electricity_per_kwh=0.1,
        site=(
            SiteTable(pue=1.1, source="a"),
            SiteTable(zone="SWE", pue=1.08, source="b"),
        ),
        price=(PriceTable(prompt=0.3, output=1e-7),),
    )
    factors = make_factors(file, Path())
    assert factors.prices.electricity_per_kwh == Fraction(1, 10)
    price = factors.prices.find("api", "llama")
    assert (price.prompt, price.cached, price.output) == (
        Fraction(3, 10),
        Fraction(3, 10),
        Fraction(1, 10**7),
    )
    assert factors.sites.pue_of("DEU").value == Fraction(11, 10)
    assert factors.sites.pue_of("SWE").value == Fraction(108, 100)


def test_an_operator_s_embodied_carbon_comes_before_the_shipped_one():
    row = EmbodiedTable(match="H100", device_kg=1.5, life_years=6, source="ours")
    factors = make_factors(FactorsFile(embodied=(row,)), Path())
    assert find_embodied(H100, factors.embodied).source == "ours"


def test_a_series_is_found_beside_the_factors(tmp_path):
    (tmp_path / "grid.csv").write_text(HEADING + HOUR)
    file = FactorsFile(intensity=IntensityTable(file="grid.csv"))
    factor = make_factors(file, tmp_path).intensities.book_factor("DEU", TEN)
    assert (factor.g_per_kwh, factor.tier) == (Fraction("310.5"), Tier.HOUR)


def test_a_series_that_cannot_be_used_is_refused(tmp_path):
    file = FactorsFile(intensity=IntensityTable(file="grid.csv"))
    with pytest.raises(ConfigError, match=r"grid\.csv: cannot be read: No such file"):
        make_factors(file, tmp_path)
    (tmp_path / "grid.csv").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        make_factors(file, tmp_path)
    (tmp_path / "grid.csv").write_text(HEADING + HOUR + HOUR)
    with pytest.raises(ConfigError, match=r"grid\.csv:3: .* overlaps line 2"):
        make_factors(file, tmp_path)
    (tmp_path / "grid.csv").write_text(HEADING + HOUR.replace("average", "marginal"))
    with pytest.raises(ConfigError, match="the books need kind=average"):
        make_factors(file, tmp_path)


def test_a_command_gives_a_number_or_a_series():
    factor = make_factors(of_command("print(55.5)"), Path()).intensities.book_factor("DEU", TEN)
    assert (factor.g_per_kwh, factor.tier, factor.is_estimate) == (
        Fraction("55.5"),
        Tier.CONSTANT,
        True,
    )
    factors = make_factors(of_command(f"print({HEADING + HOUR!r})"), Path())
    assert factors.intensities.book_factor("DEU", TEN).tier is Tier.HOUR


def test_a_command_that_fails_is_named_with_its_last_words():
    with pytest.raises(PeerError, match="ended with 1: no network"):
        make_factors(of_command("import sys; sys.exit('no network')"), Path())
    with pytest.raises(PeerError, match="ended with 3: it says nothing"):
        make_factors(of_command("raise SystemExit(3)"), Path())
    missing = FactorsFile(intensity=IntensityTable(command=("no-such-program",)))
    with pytest.raises(ConfigError, match="`no-such-program`: cannot be run: No such file"):
        make_factors(missing, Path())
    with pytest.raises(ConfigError, match="prints what is not UTF-8"):
        make_factors(of_command("import os; os.write(1, bytes([255]))"), Path())
