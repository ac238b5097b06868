from fractions import Fraction
from importlib.resources import files

import pytest

from nodeserve.energy.intensity import Kind, Scope, Tier
from nodeserve.energy.intensity_csv import (
    known_zones,
    make_intensities,
    parse_output,
    parse_series,
    parse_table,
    require_averages,
)
from nodeserve.energy.utc import parse_utc
from nodeserve.errors import ConfigError

HEADING = "zone,start_utc,end_utc,g_per_kwh,kind,scope,estimated,source,licence,vintage\n"
FIRST = "DEU,2026-03-10T10:00Z,2026-03-10T11:00Z,310.5,average,direct,false,TSO,CC0,2026\n"
TEN = parse_utc("2026-03-10T10:00Z")


def shipped():
    return files("nodeserve.energy").joinpath("data/intensity_yearly.csv").read_text("utf-8")


def refusal(text, parse=parse_series):
    with pytest.raises(ConfigError) as caught:
        parse(text, "i.csv")
    return str(caught.value)


def test_the_shipped_table_has_two_sources_for_each_zone_and_says_which():
    rows = parse_table(shipped(), "intensity_yearly.csv")
    zones = known_zones(rows)
    assert len(zones) == 21
    for zone in zones:
        sources = {row.origin.source: row for row in rows if row.zone == zone}
        assert set(sources) == {"Ember Yearly Electricity Data", "OWID energy data"}
        assert {row.origin.licence for row in sources.values()} == {"CC BY 4.0"}
        assert {row.kind for row in sources.values()} == {Kind.AVERAGE}


def test_the_shipped_figures_are_those_of_their_sources():
    intensities = make_intensities(shipped())
    germany = intensities.book_factor("DE", parse_utc("2024-05-01"))
    assert (germany.g_per_kwh, germany.tier) == (Fraction("342.06"), Tier.YEAR)
    assert germany.origin.source == "Ember Yearly Electricity Data"
    before = intensities.book_factor("DEU", parse_utc("2023-05-01"))
    assert (before.g_per_kwh, before.origin.source) == (Fraction("380.95"), "OWID energy data")
    assert intensities.book_factor("ATA", TEN).g_per_kwh == Fraction("472.94")


def test_a_series_is_read_with_all_that_it_says():
    (interval,) = parse_series(f"# from our TSO\n\n{HEADING}{FIRST}", "i.csv")
    assert (interval.zone, interval.g_per_kwh) == ("DEU", Fraction("310.5"))
    assert (interval.begin_unix_s, interval.end_unix_s) == (TEN, TEN + 3_600)
    assert (interval.kind, interval.scope) == (Kind.AVERAGE, Scope.DIRECT)
    assert (interval.is_estimate, interval.origin.licence) == (False, "CC0")


def test_columns_may_stand_in_any_order_and_others_beside_them():
    text = "vintage,note,licence,source,estimated,scope,kind,g_per_kwh,end_utc,start_utc,zone\n"
    text += "2026,x,,TSO,yes,lifecycle,marginal,9,2026-03-11,2026-03-10,FRA\n"
    (interval,) = parse_series("\ufeff" + text, "i.csv")
    assert (interval.zone, interval.kind, interval.is_estimate) == ("FRA", Kind.MARGINAL, True)
    assert (interval.grain, interval.origin.licence) == (Tier.MONTH, "unknown")


def test_an_overlap_is_refused_with_both_lines():
    second = FIRST.replace("10:00Z,", "10:59Z,").replace("11:00Z", "11:59Z")
    said = refusal(f"{HEADING}# mine\n{FIRST}{second}")
    assert said.startswith("i.csv:4: DEU average from 2026-03-10T10:59Z to 2026-03-10T11:59Z")
    assert "overlaps line 3, DEU average from 2026-03-10T10:00Z to 2026-03-10T11:00Z" in said


def test_an_overlap_is_found_whatever_the_order_of_lines():
    second = FIRST.replace("10:00Z,", "09:30Z,").replace("11:00Z", "10:01Z")
    assert refusal(HEADING + FIRST + second).startswith("i.csv:2: ")
    assert "overlaps line 3" in refusal(HEADING + FIRST + second)


def test_neighbours_other_zones_kinds_and_grains_do_not_overlap():
    lines = (
        FIRST,
        FIRST.replace("10:00Z,", "11:00Z,").replace("11:00Z,310", "12:00Z,310"),
        FIRST.replace("DEU", "FRA"),
        FIRST.replace("average", "marginal"),
        "DEU,2026-03-01,2026-04-01,300,average,direct,false,TSO,CC0,2026\n",
    )
    assert len(parse_series(HEADING + "".join(lines), "i.csv")) == 5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (FIRST.replace("310.5", "much"), "i.csv:2: g_per_kwh is 'much'"),
        (FIRST.replace("310.5", "-1"), "i.csv:2: g_per_kwh is '-1'"),
        (FIRST.replace("310.5", "nan"), "i.csv:2: g_per_kwh is 'nan'"),
        (FIRST.replace("310.5", "310500"), "i.csv:2: g_per_kwh is 310500, at most 2000"),
        (FIRST.replace("average", "mean"), "i.csv:2: kind is 'mean': write average or marginal"),
        (FIRST.replace("direct", "all"), "i.csv:2: scope is 'all': write direct or lifecycle"),
        (FIRST.replace("false", "maybe"), "i.csv:2: estimated is 'maybe'"),
        (FIRST.replace("TSO", ""), "i.csv:2: source is empty"),
        (FIRST.replace("DEU", ""), "i.csv:2: zone is empty"),
        (FIRST.replace("11:00Z", "10:00Z"), "i.csv:2: DEU average from 2026-03-10T10:00Z to"),
        (FIRST.replace("11:00Z", "11:01Z"), "i.csv:2: DEU average from 2026-03-10T10:00Z to"),
        (FIRST.replace("10T11:00Z", "11T08:59Z"), "i.csv:2: DEU average from 2026-03-10T10:00Z"),
        (FIRST.replace("11:00Z", "11:00+01:00"), "i.csv:2: end_utc: '2026-03-10T11:00+01:00'"),
        (FIRST.replace("2026\n", "\n").replace(",\n", "\n"), "i.csv:2: has 9 cells"),
        ('"DEU\n', "i.csv:2: is no CSV"),
    ],
)
def test_a_wrong_line_is_refused_by_file_and_line(line, said):
    assert refusal(HEADING + line).startswith(said)


def test_a_file_without_its_columns_is_refused():
    assert "lacks the columns start_utc, end_utc" in refusal("zone,g_per_kwh\n")
    assert refusal("# nothing\n").startswith("i.csv: is empty")


def test_a_table_with_a_row_twice_is_refused():
    heading, row = shipped().splitlines()[-2:]
    heading = "zone,alias,year,g_per_kwh,kind,scope,source,vintage,licence"
    assert refusal(f"{heading}\n{row}\n{row}\n", parse_table) == (
        "i.csv:3: repeats line 2; drop one of them"
    )
    assert "year is '24'" in refusal(f"{heading}\n{row.replace(',2024,', ',24,')}\n", parse_table)


def test_a_command_prints_a_number_or_a_series():
    series, constant = parse_output(" 213.4\n", "`grid`")
    assert (series, constant.g_per_kwh, constant.tier) == ([], Fraction("213.4"), Tier.CONSTANT)
    assert (constant.is_estimate, constant.origin.source) == (True, "`grid`")
    series, constant = parse_output(HEADING + FIRST, "`grid`")
    assert (len(series), constant) == (1, None)
    assert refusal("error: no network", parse_output).startswith("i.csv:1: lacks the columns")


def test_books_refuse_a_series_that_is_marginal_alone():
    marginal = FIRST.replace("average", "marginal")
    with pytest.raises(ConfigError, match=r"i\.csv: all 1 intervals are marginal"):
        require_averages(parse_series(HEADING + marginal, "i.csv"), "i.csv")
    require_averages(parse_series(HEADING + marginal + FIRST, "i.csv"), "i.csv")
    require_averages([], "i.csv")
