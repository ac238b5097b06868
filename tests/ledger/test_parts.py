import pytest

from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.merge import MeterSpan
from nodeserve.energy.utc import HOUR_S
from nodeserve.errors import ConfigError
from nodeserve.ledger.parts import read_part
from tests.support.energy_ledger import write_ledger
from tests.support.energy_rows import TEN, a_meter, an_energy, some_tokens

LATER = {"hour_unix_s": TEN + HOUR_S}
ROWS = LedgerRows(
    energy=[an_energy(60, 5), an_energy(7, **LATER), an_energy(3, listener="#unattributed")],
    meters=[a_meter(68, 9), a_meter(7, 1, 2, metered_s=1_800.0, **LATER)],
    tokens=[some_tokens(5, 6, cached_tokens=2, scrap_tokens=1)],
)


def test_all_of_a_ledger_is_read_with_what_it_covers(tmp_path):
    path = write_ledger(tmp_path / "ledger.db", ROWS)
    part = read_part(path)
    assert (part.name, part.node) == (str(path), "n1")
    assert len(part.node_id) == 32
    assert list(part.rows.meters) == list(ROWS.meters)
    assert list(part.rows.tokens) == list(ROWS.tokens)
    named = [row for row in part.rows.energy if not row.listener.startswith("#")]
    assert named == list(ROWS.energy[:2])
    accounts = [row for row in part.rows.energy if row.listener.startswith("#")]
    assert [(row.listener, row.useful_mj) for row in accounts] == [("#unattributed", 3)]
    begin = TEN * 1_000
    assert part.spans == [
        MeterSpan(
            meter="GPU-1",
            kind="gpu",
            begin_unix_ms=begin,
            end_unix_ms=begin + (HOUR_S + 1_800) * 1_000,
        )
    ]


def test_hours_are_those_of_the_period_and_what_is_covered_is_not(tmp_path):
    path = write_ledger(tmp_path / "ledger.db", ROWS)
    part = read_part(path, since_unix_s=TEN + HOUR_S, until_unix_s=TEN + 2 * HOUR_S)
    assert [row.hour_unix_s for row in part.rows.meters] == [TEN + HOUR_S]
    assert part.rows.tokens == []
    assert part.spans == read_part(path).spans


def test_what_is_no_ledger_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not there"):
        read_part(tmp_path / "ledger.db")
    (tmp_path / "other.db").write_text("no database")
    with pytest.raises(ConfigError, match="is no ledger"):
        read_part(tmp_path / "other.db")
