from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from nodeserve.energy.carbon import CarbonBook
from nodeserve.energy.intensity import Intensities, Interval, Kind, Origin, Scope, Tier, Yearly
from nodeserve.energy.sci import Pue, Sites
from nodeserve.energy.utc import HOUR_S
from tests.support.energy_rows import TEN

KWH_MJ = 3_600_000_000
TABLE = Origin(source="a table", vintage="2025", licence="CC BY 4.0")
GRID = Origin(source="a grid", vintage="2026", licence="ours")


def a_year(zone, grams):
    return Yearly(
        zone=zone,
        alias="",
        year=2026,
        g_per_kwh=Fraction(grams),
        kind=Kind.AVERAGE,
        scope=Scope.LIFECYCLE,
        origin=TABLE,
    )


def an_hour(hour, grams, **changes):
    given_ = {
        "zone": "DEU",
        "begin_unix_s": hour,
        "end_unix_s": hour + HOUR_S,
        "g_per_kwh": Fraction(grams),
        "kind": Kind.AVERAGE,
        "scope": Scope.DIRECT,
        "is_estimate": False,
        "origin": GRID,
    }
    return Interval(**{**given_, **changes})


def a_book(*intervals, pue="1"):
    table = (a_year("WORLD", 500), a_year("DEU", 300))
    sites = Sites(
        elsewhere=Pue(value=Fraction(pue), source="site"),
        by_zone={"ISL": Pue(value=Fraction(2), source="other site")},
    )
    return CarbonBook(Intensities(table, intervals), sites)


def test_each_hour_has_its_own_intensity_and_every_figure_says_which():
    book = a_book(an_hour(TEN, 100), an_hour(TEN + HOUR_S, 200))
    for hour in range(3):
        book.add("api", "DEU", TEN + hour * HOUR_S, KWH_MJ)
    figure = book.figures()["api"]
    assert figure.mass_ug == (100 + 200 + 300) * 1_000_000
    by_origin = {use.origin.source: use for use in figure.uses}
    grid, table = by_origin["a grid"], by_origin["a table"]
    assert (grid.tier, grid.scope, grid.energy_mj) == (Tier.HOUR, Scope.DIRECT, 2 * KWH_MJ)
    assert (grid.lowest_g_per_kwh, grid.highest_g_per_kwh) == (100, 200)
    assert (table.tier, table.scope, table.energy_mj) == (Tier.YEAR, Scope.LIFECYCLE, KWH_MJ)
    assert (figure.tier, figure.kind, figure.is_estimate) == (Tier.YEAR, Kind.AVERAGE, False)


def test_a_figure_is_an_estimate_when_a_part_of_it_is():
    book = a_book(an_hour(TEN, 100, is_estimate=True))
    book.add("api", "DEU", TEN, 1)
    book.add("batch", "DEU", TEN + HOUR_S, 1)
    book.add("far", "ATA", TEN, 1)
    figures = book.figures()
    assert [figures[name].is_estimate for name in ("api", "batch", "far")] == [True, False, True]
    assert figures["far"].tier is Tier.WORLD


def test_marginal_intensities_are_passed_over():
    book = a_book(an_hour(TEN, 900, kind=Kind.MARGINAL))
    book.add("api", "DEU", TEN, KWH_MJ)
    figure = book.figures()["api"]
    assert (figure.mass_ug, figure.kind) == (300_000_000, Kind.AVERAGE)


def test_pue_multiplies():
    book = a_book(pue="1.25")
    book.add("api", "DEU", TEN, KWH_MJ)
    book.add("far", "ISL", TEN, KWH_MJ)
    figures = book.figures()
    assert figures["api"].mass_ug == 375_000_000
    assert figures["far"].mass_ug == 2 * 500_000_000


def test_no_energy_is_no_carbon_and_rests_on_nothing():
    book = a_book()
    book.add("api", "DEU", TEN, 0)
    figure = book.figures()["api"]
    assert (figure.mass_ug, figure.uses, figure.tier, figure.kind) == (0, (), None, None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("a", "b", "c")),
            st.sampled_from(("DEU", "FRA")),
            st.integers(0, 5),
            st.integers(0, 10**12),
        )
    )
)
def test_the_sum_of_rounded_figures_is_that_of_the_whole(pieces):
    grams = [Fraction(n, 7) + 10 for n in range(3)]
    hours = [an_hour(TEN + n * HOUR_S, gram) for n, gram in enumerate(grams)]
    apart, together = a_book(*hours, pue="1.17"), a_book(*hours, pue="1.17")
    for name, zone, hour, energy_mj in pieces:
        apart.add(name, zone, TEN + hour * HOUR_S, energy_mj)
        together.add("all", zone, TEN + hour * HOUR_S, energy_mj)
    total = together.figures()["all"].mass_ug if pieces else 0
    assert sum(figure.mass_ug for figure in apart.figures().values()) == total
