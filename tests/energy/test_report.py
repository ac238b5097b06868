from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings

from nodeserve.energy.intensity import Tier
from nodeserve.energy.ledger_rows import Column, LedgerRows
from nodeserve.energy.report import By, make_report
from nodeserve.energy.utc import HOUR_S
from nodeserve.errors import InvariantError
from tests.support.energy_rows import (
    TEN,
    a_meter,
    an_energy,
    ledgers,
    some_factors,
    some_tokens,
)

FACTORS = some_factors()
UNTIL = TEN + 10 * HOUR_S
KWH_MJ = 3_600_000_000


def report(by, energy=(), meters=(), tokens=(), *, factors=FACTORS, until=UNTIL):
    rows = LedgerRows(energy=energy, meters=meters, tokens=tokens)
    return make_report(rows, by, factors, until_unix_s=until)


def lines(by, *rows, **settings_):
    return {line.name: line for line in report(by, *rows, **settings_).lines}


def amounts(line):
    return {column.value: mj for column, mj in line.energy.items() if mj}


@settings(max_examples=60)
@given(ledgers())
def test_every_report_of_the_same_rows_has_the_same_total_and_its_lines_add_up_to_it(rows):
    metered_mj = sum(row.metered_mj for row in rows.meters)
    served = sum(row.prompt_tokens + row.output_tokens for row in rows.tokens)
    totals = set()
    for by in By:
        made = make_report(rows, by, FACTORS, until_unix_s=UNTIL)
        assert made.total.metered_mj == metered_mj
        assert sum(line.metered_mj or 0 for line in made.lines) == metered_mj
        carbon_ug = sum(line.carbon.mass_ug for line in made.lines if line.carbon)
        embodied_ug = sum(line.embodied_ug or 0 for line in made.lines)
        electricity = sum(line.electricity_cost or 0 for line in made.lines)
        assert carbon_ug == made.total.carbon.mass_ug
        assert embodied_ug == made.total.embodied_ug
        assert electricity == made.total.electricity_cost
        for column in Column:
            assert sum(line.part_mj(column) or 0 for line in made.lines) == made.total.part_mj(
                column
            )
        if by is not By.GPU:
            assert sum(line.tokens.served for line in made.lines) == served
            assert sum(line.cost for line in made.lines) == made.total.cost
        totals.add((carbon_ug, embodied_ug, electricity, made.total.cost))
    assert len(totals) == 1


def test_idle_energy_is_borne_by_those_who_used_the_node_in_that_hour():
    energy = [
        an_energy(300, listener="api"),
        an_energy(100, 100, listener="batch", meter="GPU-2"),
        an_energy(1_000, listener="late", hour_unix_s=TEN + HOUR_S),
    ]
    meters = [
        a_meter(300, 40),
        a_meter(200, 11, meter="GPU-2"),
        a_meter(1_000, 7, hour_unix_s=TEN + HOUR_S),
    ]
    found = lines(By.LISTENER, energy, meters)
    assert amounts(found["api"]) == {"useful": 300, "idle": 31}
    assert amounts(found["batch"]) == {"useful": 100, "scrap": 100, "idle": 20}
    assert amounts(found["late"]) == {"useful": 1_000, "idle": 7}
    by_gpu = lines(By.GPU, energy, meters)
    assert amounts(by_gpu["n1/GPU-2"]) == {"useful": 100, "scrap": 100, "idle": 11}
    assert by_gpu["n1/GPU-1"].tokens is None


def test_what_nobody_can_be_named_for_has_lines_of_its_own():
    energy = [an_energy(300), an_energy(50, listener="#unattributed", model="", role="none")]
    meters = [a_meter(400, 10, 5), a_meter(0, 99, hour_unix_s=TEN + HOUR_S)]
    made = report(By.LISTENER, energy, meters)
    assert [line.name for line in made.lines] == ["api", "#idle", "#quarantine", "#unattributed"]
    found = {line.name: amounts(line) for line in made.lines}
    assert found == {
        "api": {"useful": 300, "idle": 10},
        "#idle": {"idle": 99},
        "#quarantine": {"quarantine": 5},
        "#unattributed": {"unattributed": 100},
    }
    for by in (By.MODEL, By.ROLE):
        assert [line.name for line in report(by, energy, meters).lines][1:] == sorted(found)[:3]


def test_prefill_and_decode_have_their_own_energy_per_token():
    energy = [
        an_energy(5_000, role="prefill", meter="GPU-1"),
        an_energy(30_000, 2_000, role="decode", meter="GPU-2"),
    ]
    meters = [a_meter(5_000, 500), a_meter(32_000, 0, meter="GPU-2")]
    tokens = [
        some_tokens(prompt=1_000, role="prefill", cached_tokens=500, requests=0),
        some_tokens(output=100, scrap_tokens=7),
    ]
    (line,) = report(By.LISTENER, energy, meters, tokens).lines
    assert line.prefill_j_per_token == Fraction(5, 500)
    assert line.decode_j_per_token == Fraction(30, 100)
    assert line.j_per_token == Fraction(37, 1_100)
    assert line.j_per_output_token == Fraction(37, 100)
    assert line.settled_j_per_token == Fraction(375, 11_000)
    assert (line.tokens.requests, line.tokens.scrap) == (1, 7)
    by_role = lines(By.ROLE, energy, meters, tokens)
    assert by_role["prefill"].tokens.prompt == 1_000
    assert by_role["decode"].prefill_j_per_token is None


def test_carbon_is_energy_with_the_site_s_share_times_the_hour_s_intensity():
    energy, meters = [an_energy(KWH_MJ)], [a_meter(KWH_MJ, KWH_MJ)]
    tokens = [some_tokens(prompt=500, output=500)]
    (line,) = report(By.LISTENER, energy, meters, tokens).lines
    assert line.carbon.mass_ug == 2 * Fraction("1.2") * Fraction("342.06") * 1_000_000
    assert line.g_per_1k_tokens == 2 * Fraction("1.2") * Fraction("342.06")
    assert float(line.embodied_ug / 1e6) == pytest.approx(25.0, abs=0.01)
    operational_and_embodied = line.g_per_1k_tokens + Fraction(line.embodied_ug, 1_000_000)
    assert line.sci_g_per_million_tokens == operational_and_embodied * 1_000
    assert (line.carbon.tier, line.carbon.kind, line.carbon.is_estimate) == (
        Tier.YEAR,
        "average",
        True,
    )


def test_energy_in_quarantine_is_shown_and_in_no_other_figure():
    (line,) = report(By.NODE, [], [a_meter(0, KWH_MJ, 5 * KWH_MJ)]).lines
    assert line.metered_mj == 6 * KWH_MJ
    assert line.settled_mj == KWH_MJ
    assert line.carbon.mass_ug == Fraction("1.2") * Fraction("342.06") * 1_000_000
    assert line.electricity_cost == Fraction("1.2") * 213_000


def test_tokens_cost_what_the_prices_say_and_scrap_nothing():
    tokens = [
        some_tokens(prompt=1_000_000, cached_tokens=400_000, role="prefill"),
        some_tokens(output=500_000, scrap_tokens=10_000),
    ]
    (line,) = report(By.MODEL, [], [], tokens).lines
    wanted = Fraction("0.6") * Fraction("0.15") + Fraction("0.4") * Fraction("0.07")
    wanted += Fraction("0.5") * Fraction("0.6")
    assert line.cost == wanted * 1_000_000
    assert line.cost_per_million_tokens == wanted / Fraction("1.5")


def test_without_a_meter_energy_and_carbon_are_unknown_and_tokens_are_not():
    made = report(By.LISTENER, [], [], [some_tokens(10, 20)])
    for line in (*made.lines, made.total):
        assert (line.energy, line.carbon, line.embodied_ug) == (None, None, None)
        assert (line.metered_mj, line.j_per_token, line.g_per_1k_tokens) == (None, None, None)
        assert line.electricity_cost is None
        assert line.tokens.served == 30


def test_tokens_of_an_hour_without_a_meter_make_energy_per_token_unknown():
    later = {"hour_unix_s": TEN + HOUR_S}
    tokens = [some_tokens(10, 10), some_tokens(10, 10, **later)]
    (line,) = report(By.LISTENER, [an_energy(900)], [a_meter(900)], tokens).lines
    assert line.active_mj == 900
    assert line.tokens.unmetered == 20
    assert (line.j_per_token, line.g_per_1k_tokens, line.decode_j_per_token) == (None, None, None)
    by_hour = report(By.HOUR, [an_energy(900)], [a_meter(900)], tokens).lines
    assert by_hour[0].j_per_token == Fraction(9, 200)
    assert by_hour[1].j_per_token is None


def test_a_listener_without_a_price_has_an_unknown_cost_and_so_has_the_total():
    factors = some_factors(prices=None)
    made = report(By.LISTENER, [], [], [some_tokens(10, 20)], factors=factors)
    assert (made.lines[0].cost, made.total.cost) == (None, None)


def test_a_device_whose_making_is_unknown_makes_embodied_carbon_unknown():
    made = report(By.LISTENER, [an_energy(9)], [a_meter(9, name="NVIDIA L40S")], [some_tokens(1)])
    assert made.unknown_embodied == ["NVIDIA L40S"]
    assert (made.total.embodied_ug, made.total.sci_g_per_million_tokens) == (None, None)
    assert made.total.carbon is not None


def test_the_cpus_of_a_server_with_gpus_are_made_with_the_server():
    meters = [a_meter(0, 1), a_meter(0, 1, meter="cpu-package-0", kind="cpu", name="EPYC")]
    made = report(By.NODE, [], meters)
    assert made.unknown_embodied == []
    assert report(By.NODE, [], meters[1:]).unknown_embodied == ["EPYC"]


def test_rates_are_over_the_time_that_was_metered():
    meters = [
        a_meter(0, 1, metered_s=1_800.0),
        a_meter(0, 1, metered_s=1_700.0, meter="GPU-2"),
        a_meter(0, 1, hour_unix_s=TEN + HOUR_S),
    ]
    tokens = [some_tokens(0, 5_400), some_tokens(0, 7_200, hour_unix_s=TEN + HOUR_S)]
    made = report(By.HOUR, [], meters, tokens)
    assert [line.tokens_per_s for line in made.lines] == [3.0, 2.0]
    assert made.total.tokens_per_s == pytest.approx(12_600 / 5_400)


def test_where_nothing_is_metered_rates_are_over_the_time_that_has_passed():
    tokens = [some_tokens(0, 7_200), some_tokens(0, 600, hour_unix_s=TEN + HOUR_S)]
    made = report(By.HOUR, [], [], tokens, until=TEN + HOUR_S + 300)
    assert [line.tokens_per_s for line in made.lines] == [2.0, 2.0]


def test_a_line_says_whether_its_energy_is_estimated():
    energy = [an_energy(5), an_energy(5, listener="batch", meter="GPU-2")]
    meters = [a_meter(5), a_meter(5, meter="GPU-2", estimated_mj=5)]
    found = lines(By.LISTENER, energy, meters)
    assert (found["api"].is_estimate, found["batch"].is_estimate) == (False, True)
    assert report(By.LISTENER, energy, meters).total.is_estimate


@pytest.mark.parametrize(
    ("energy", "meter", "said"),
    [
        ([an_energy(11)], a_meter(10), "requests have used 11 of 10 mJ"),
        ([an_energy(1, meter="GPU-9")], a_meter(10), "meter GPU-9, 2026-03-10T10:00Z: requests"),
        ([], replace(a_meter(10), metered_mj=11), "metered 11 mJ, booked 10 mJ"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(energy, meter, said):
    with pytest.raises(InvariantError, match=r"energy verify") as caught:
        report(By.LISTENER, energy, [meter])
    assert said in str(caught.value)


def test_nothing_makes_an_empty_report():
    for by in By:
        made = report(by)
        assert (made.lines, made.total.energy, made.total.tokens.served) == ([], None, 0)
        assert made.total.tokens_per_s is None
