import pytest

from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.report import By, make_report
from nodeserve.energy.series import MAX_HOURS, make_figure
from nodeserve.energy.utc import HOUR_S
from nodeserve.errors import InvariantError
from tests.support.energy_rows import TEN, a_meter, an_energy, some_factors, some_tokens


def report(energy=(), meters=(), tokens=(), by=By.HOUR):
    rows = LedgerRows(energy=energy, meters=meters, tokens=tokens)
    return make_report(rows, by, some_factors(), until_unix_s=TEN + 3 * HOUR_S)


def curves(figure):
    return {
        f"{panel.unit} {curve.label}": curve.values
        for panel in figure.panels
        for curve in panel.curves
    }


def test_power_is_energy_by_the_time_that_was_metered_and_gaps_stay_gaps():
    later = {"hour_unix_s": TEN + 2 * HOUR_S}
    energy = [an_energy(3_600_000), an_energy(900_000, role="prefill", **later)]
    meters = [
        a_meter(3_600_000, 3_600_000, 7, metered_s=3_600.0),
        a_meter(900_000, 0, metered_s=1_800.0, **later),
    ]
    tokens = [some_tokens(0, 7_200), some_tokens(1_800, 0, role="prefill", **later)]
    figure = make_figure(report(energy, meters, tokens), ["a caption"])
    assert figure.hours_unix_s == [TEN, TEN + HOUR_S, TEN + 2 * HOUR_S]
    found = curves(figure)
    assert found["W all"] == [2.0, None, 0.5]
    assert found["W above idle"] == [1.0, None, 0.5]
    assert found["tokens/s prompt and output"] == [2.0, None, 1.0]
    assert found["J served"] == [0.5, None, 0.5]
    assert found["J decode"] == [0.5, None, None]
    assert found["J prefill"] == [None, None, 0.5]


def test_without_a_meter_power_is_unknown():
    found = curves(make_figure(report(tokens=[some_tokens(5, 5)]), []))
    assert (found["W all"], found["W above idle"], found["J served"]) == ([None], [None], [None])


def test_nothing_is_an_empty_figure():
    figure = make_figure(report(), [])
    assert (figure.hours_unix_s, curves(figure)["W all"]) == ([], [])


def test_other_reports_and_endless_ones_are_refused():
    with pytest.raises(InvariantError, match="this one is by model"):
        make_figure(report(by=By.MODEL), [])
    far = some_tokens(1, hour_unix_s=TEN + (MAX_HOURS + 1) * HOUR_S)
    with pytest.raises(InvariantError, match="too long to draw"):
        make_figure(report(tokens=[some_tokens(1), far]), [])
