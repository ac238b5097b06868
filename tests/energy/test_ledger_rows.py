import pytest
from hypothesis import given

from nodeserve.energy.ledger_rows import IDLE, Column, LedgerRows, cells_of
from nodeserve.energy.utc import HOUR_S
from nodeserve.errors import InvariantError
from tests.support.energy_rows import TEN, a_meter, an_energy, ledgers


@given(ledgers())
def test_pieces_are_all_that_was_metered(rows):
    cells = cells_of(rows)
    pieces = [piece for cell in cells for piece in cell.pieces()]
    assert sum(piece.amount for piece in pieces) == sum(row.metered_mj for row in rows.meters)
    assert all(piece.amount >= 0 for piece in pieces)


@given(ledgers())
def test_what_is_spread_is_spread_whole_and_among_users_alone(rows):
    for cell in cells_of(rows):
        parts = list(cell.spread(1_000_003, Column.IDLE))
        assert sum(part.amount for part in parts) == 1_000_003
        users = {row.listener for row in cell.energy if row.useful_mj + row.scrap_mj}
        bearers = {part.listener for part in parts if part.amount}
        assert bearers <= (users or {IDLE})


def test_an_account_bears_nothing_of_what_is_spread():
    energy = [an_energy(1), an_energy(99, listener="#unattributed")]
    (cell,) = cells_of(LedgerRows(energy=energy, meters=[a_meter(100, 50)], tokens=[]))
    assert [part.listener for part in cell.spread(50, Column.IDLE)] == ["api"]


def test_places_come_in_order_of_time():
    meters = [a_meter(1, hour_unix_s=TEN + HOUR_S), a_meter(1, node="n2"), a_meter(1)]
    cells = cells_of(LedgerRows(energy=[], meters=meters, tokens=[]))
    assert [(cell.place.hour_unix_s - TEN, cell.place.node) for cell in cells] == [
        (0, "n1"),
        (0, "n2"),
        (HOUR_S, "n1"),
    ]


def test_a_meter_with_two_rows_for_an_hour_is_refused():
    rows = LedgerRows(energy=[], meters=[a_meter(1), a_meter(2)], tokens=[])
    with pytest.raises(InvariantError, match="meter GPU-1 has two rows for 2026-03-10T10:00Z"):
        cells_of(rows)
