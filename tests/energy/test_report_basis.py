from dataclasses import replace
from fractions import Fraction

from nodeserve.energy.intensity import Scope
from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.prices import Price, Prices
from nodeserve.energy.report import By, make_report
from nodeserve.energy.report_basis import basis_lines, basis_of, usage_lines
from nodeserve.energy.sci import Sites
from nodeserve.energy.utc import HOUR_S
from tests.support.energy_rows import TEN, a_meter, an_energy, some_factors, some_tokens

UNTIL = TEN + 90 * HOUR_S


def basis(energy=(), meters=(), tokens=(), factors=None, until=UNTIL):
    factors = factors or some_factors()
    rows = LedgerRows(energy=energy, meters=meters, tokens=tokens)
    report = make_report(rows, By.LISTENER, factors, until_unix_s=until)
    return basis_of(report, rows, factors, period=(0, until), factors_name="f.toml")


def test_figures_say_where_they_are_from():
    found = basis([an_energy(500)], [a_meter(500, 1)], [some_tokens(5, 5)])
    assert (found.since, found.until) == ("2026-03-10T10:00Z", "2026-03-10T11:00Z")
    assert (found.nodes, found.zones, found.boundary) == (("n1",), ("DEU",), "gpu")
    assert found.pue == ("DEU: 1.2 (site, 2025)",)
    (use,) = found.intensity
    assert (use.source, use.vintage, use.licence) == (
        "Ember Yearly Electricity Data",
        "2025",
        "CC BY 4.0",
    )
    assert (use.tier, use.kind, use.scope, use.estimated) == ("year", "average", "lifecycle", True)
    assert (use.lowest_g_per_kwh, use.energy_mj) == (342.06, 501)
    assert found.embodied[0].startswith("H100 80GB: 25.0 g per device-hour over 4 years; NVIDIA")
    assert found.prices == "EUR, 1 for tokens; electricity 0.213/kWh"
    assert found.notes == ()
    lines = "\n".join(basis_lines(found))
    assert "carbon    DEU: 342.06 g/kWh, average, lifecycle, by year of DEU, estimated;" in lines
    assert "accuracy of the meters: not stated by their vendors" in lines
    assert "factors   f.toml" in "\n".join(usage_lines(found))


def test_what_was_not_supplied_and_what_is_unknown_is_called_so():
    factors = some_factors(prices=None, sites=Sites(), embodied=())
    found = basis([], [a_meter(0, 1, zone="")], [some_tokens(1, 1, zone="")], factors)
    assert found.zones == ("not supplied",)
    assert found.pue == ("not supplied: 1 (not supplied)",)
    assert found.prices == "not supplied"
    assert found.embodied == ("unknown: no figure for NVIDIA H100 80GB HBM3",)
    assert found.intensity[0].tier == "world"
    assert found.notes == ("a node says no zone, so the world's intensity stands for its own",)


def test_the_boundary_names_what_is_metered():
    cpu = a_meter(0, 1, meter="cpu-package-0", kind="cpu", name="EPYC")
    assert basis([], [cpu]).boundary == "cpu package"
    assert basis([], [cpu, a_meter(0, 1)]).boundary == "gpu + cpu package"
    assert basis([], [a_meter(0, 1, kind="simulated")]).boundary == "simulated, not measured"
    assert basis([], [], [some_tokens(1)]).boundary == "nothing was metered: energy is unknown"


def test_what_a_reader_must_know_is_noted():
    price = Price(listener="other", prompt=Fraction(1), cached=Fraction(1), output=Fraction(1))
    factors = some_factors(prices=Prices(currency="EUR", prices=(price,)))
    meters = [a_meter(2_000, 0, 3_000, estimated_mj=1_500)]
    tokens = [some_tokens(3, 4), some_tokens(5, 6, hour_unix_s=TEN + HOUR_S)]
    assert basis([], meters, tokens, factors).notes == (
        "1.5 J are integrated power and no counter's",
        "3.0 J are in quarantine, and in no other figure",
        "2.0 J were used by requests that cannot be named",
        "11 tokens are of hours without a meter: what they took is unknown",
        "18 tokens have no price: their cost is unknown",
    )


def test_an_hour_that_has_not_ended_ends_with_the_period():
    found = basis([], [a_meter(0, 1)], until=TEN + 600)
    assert (found.since, found.until) == ("2026-03-10T10:00Z", "2026-03-10T10:10Z")


def test_an_empty_ledger_has_a_basis_too():
    found = basis()
    assert (found.nodes, found.intensity, found.embodied) == ((), (), ())
    assert "nodes     none; zones: none" in basis_lines(found)


def test_mixed_scopes_are_noted():
    meters = [a_meter(0, 9), a_meter(0, 9, node="n2", zone="FRA", meter="GPU-2")]
    factors = some_factors()
    rows = LedgerRows(energy=[], meters=meters, tokens=[])
    report = make_report(rows, By.NODE, factors, until_unix_s=UNTIL)
    carbon = report.total.carbon
    direct = replace(carbon.uses[0], scope=Scope.DIRECT)
    mixed = replace(carbon, uses=(direct, *carbon.uses[1:]))
    report = replace(report, total=replace(report.total, carbon=mixed))
    found = basis_of(report, rows, factors, period=(0, UNTIL), factors_name="f.toml")
    assert found.notes == (
        "carbon mixes direct and lifecycle intensities: the sum is of neither scope",
    )
