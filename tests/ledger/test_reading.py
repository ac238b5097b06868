"""Rows for reports."""

from nodeserve.energy.rows import EnergyRow, MeterRow, TokenRow
from tests.energy.shapes import UNIX_S
from tests.ledger.books import ended, leg

HOUR = int(UNIX_S // 3600) * 3600


def test_rows_are_by_hour_listener_model_role_and_meter(books):
    books.book(opened=[books.opened()])
    books.book(
        books.settled({"d9-1.1": 300, ("d9-1.2", "prefill"): 40}, idle_mj=70, unattributed_mj=9)
    )
    books.book(books.settled({"d9-1.1": 30}, begin_s=3600.0, is_estimate=True))
    legs = (leg("d9-1.1"), leg("d9-1.2", role="prefill", is_scrap=True))
    books.book(notes=[books.noted(ended=[ended(1, legs=legs, scrap_tokens=3)])])
    whose = {"node": "here", "zone": "DE"}
    place = {"listener": "chat", "model": "m"}
    used = {"meter": "GPU-0"}
    assert books.read(lambda ledger: list(ledger.energy())) == [
        EnergyRow(
            **whose, **place, **used, hour_unix_s=HOUR, role="prefill", useful_mj=0, scrap_mj=40
        ),
        EnergyRow(
            **whose, **place, **used, hour_unix_s=HOUR, role="decode", useful_mj=300, scrap_mj=0
        ),
        EnergyRow(
            **whose,
            **place,
            **used,
            hour_unix_s=HOUR + 3600,
            role="decode",
            useful_mj=30,
            scrap_mj=0,
        ),
        EnergyRow(
            **whose,
            **used,
            hour_unix_s=HOUR,
            listener="#unattributed",
            model="",
            role="none",
            useful_mj=9,
            scrap_mj=0,
        ),
    ]
    meter = {"meter": "GPU-0", "kind": "gpu", "name": "H100"}
    assert books.read(lambda ledger: list(ledger.meters())) == [
        MeterRow(
            **whose,
            **meter,
            hour_unix_s=HOUR,
            metered_mj=419,
            allocated_mj=349,
            idle_mj=70,
            quarantine_mj=0,
            metered_s=1.0,
        ),
        MeterRow(
            **whose,
            **meter,
            hour_unix_s=HOUR + 3600,
            metered_mj=30,
            allocated_mj=30,
            idle_mj=0,
            quarantine_mj=0,
            metered_s=1.0,
            estimated_mj=30,
        ),
    ]
    assert books.read(lambda ledger: list(ledger.tokens())) == [
        TokenRow(
            **whose,
            **place,
            hour_unix_s=HOUR,
            role="decode",
            requests=1,
            prompt_tokens=100,
            cached_tokens=40,
            output_tokens=20,
            scrap_tokens=3,
        )
    ]


def test_rows_are_of_hours_that_begin_in_the_interval(books):
    books.book(opened=[books.opened()])
    for hour in range(4):
        books.book(books.settled({"d9-1.1": 1}, begin_s=hour * 3600.0))

    def hours(since, until):
        rows = books.read(lambda ledger: list(ledger.meters(since, until)))
        return [(row.hour_unix_s - HOUR) // 3600 for row in rows]

    assert hours(0, None) == [0, 1, 2, 3]
    assert hours(HOUR + 1, HOUR + 3 * 3600) == [1, 2]
    assert hours(HOUR + 3600, HOUR + 2 * 3600 + 1) == [1, 2]


def test_it_says_whose_ledger_it_is(books):
    node = books.read(lambda ledger: ledger.node)
    assert (node.name, node.zone, node.created_unix_s) == ("here", "DE", UNIX_S)
    assert len(node.node_id) == 32
