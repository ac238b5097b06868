import pytest

from nodeserve.energy.ledger_rows import Column, LedgerRows
from nodeserve.energy.merge import MeterSpan
from nodeserve.energy.meter import LastReading
from nodeserve.energy.report import By, make_report
from nodeserve.energy.settle import Settled, Window
from nodeserve.energy.utc import HOUR_S
from nodeserve.energy.window import Opened, Round
from nodeserve.errors import ConfigError
from nodeserve.ledger.database import Identity
from nodeserve.ledger.parts import read_part
from nodeserve.ledger.reading import Ledger
from nodeserve.ledger.store import Booking, Store
from nodeserve.wire.accounting import Meter
from tests.support.energy_ledger import write_ledger
from tests.support.energy_rows import (
    H100,
    TEN,
    a_meter,
    an_energy,
    some_factors,
    some_tokens,
)

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


class Booker:
    """Books windows of one GPU as a ledger does, each with a share of one request."""

    def __init__(self, path):
        identity = Identity(name="n1", zone="DEU")
        self._store = Store(path, identity, "run-1", now_unix_s=float(TEN))
        self._counter_mj = 0
        self._meter = Meter(meter="GPU-1", kind="gpu", name=H100, source="nvml-counter")
        self._at_s = 0.0

    def book(self, share_mj, unattributed_mj, idle_mj):
        opened = ()
        if self._at_s == 0:
            first = LastReading(counter_mj=0, epoch=1, at_s=0.0, at_unix_s=float(TEN))
            opened = (Opened(meter=self._meter, reading=first),)
        metered_mj = share_mj + unattributed_mj + idle_mj
        self._counter_mj += metered_mj
        begin_s, self._at_s = self._at_s, self._at_s + 1.0
        window = Window(
            meter="GPU-1",
            epoch=1,
            counter_mj=self._counter_mj,
            metered_mj=metered_mj,
            wrapped_mj=0,
            begin_s=begin_s,
            end_s=self._at_s,
            begin_unix_s=TEN + begin_s,
            end_unix_s=TEN + self._at_s,
            idle_mw=1,
            is_estimate=False,
        )
        settled = Settled(
            window=window,
            shares={("d1-1.1", "decode"): share_mj},
            unattributed_mj=unattributed_mj,
            idle_mj=idle_mj,
        )
        done = Round(
            opened=opened,
            settled=(settled,),
            meters={"GPU-1": self._meter},
            until_unix_s=window.end_unix_s,
            read_logs={},
        )
        self._store.book(Booking(round=done))

    def close(self):
        self._store.close()


@pytest.fixture
def booker(tmp_path):
    made = Booker(tmp_path / "ledger.db")
    yield made
    made.close()


def report_of(part):
    return make_report(part.rows, By.LISTENER, some_factors(), until_unix_s=TEN + HOUR_S)


def test_what_a_ledger_books_is_reported_whole(tmp_path, booker):
    for turn in range(5):
        booker.book(100 + turn, turn, 10)
    part = read_part(tmp_path / "ledger.db")
    total = report_of(part).total
    assert total.metered_mj == sum(100 + turn + turn + 10 for turn in range(5))
    assert total.part_mj(Column.IDLE) == 50
    assert part.spans[0].end_unix_ms - part.spans[0].begin_unix_ms == 5_000


def test_a_booking_between_two_reads_is_not_seen_by_half(tmp_path, booker, monkeypatch):
    booker.book(100, 0, 10)
    meters = Ledger.meters

    def meters_after_a_booking(ledger, *hours):
        booker.book(7, 0, 1)
        return meters(ledger, *hours)

    monkeypatch.setattr(Ledger, "meters", meters_after_a_booking)
    assert report_of(read_part(tmp_path / "ledger.db")).total.metered_mj == 110
