"""A store that is told of rounds and requests, without a process around it."""

from contextlib import closing
from pathlib import Path

from nodeserve.energy.meter import LastReading
from nodeserve.energy.settle import Settled, Window
from nodeserve.energy.window import Opened, Round
from nodeserve.ledger.database import Identity, open_to_read
from nodeserve.ledger.reading import Ledger
from nodeserve.ledger.store import Booking, Store
from nodeserve.ledger.verify import verify
from nodeserve.wire.accounting import (
    EndedLeg,
    EndedRequest,
    RequestsNoted,
    StartedRequest,
)
from tests.energy.shapes import UNIX_S, gpu

IDENTITY = Identity(name="here", zone="DE")
DISPATCHER = 9


class Books:
    """One ledger; its meters' counters go on from window to window."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ledger.db"
        self.seq = 0
        self.counters = {}
        self.at_s = 0.0
        self.store = self.open()

    def open(self, run_id="run-1"):
        self.store = Store(self.path, IDENTITY, run_id, now_unix_s=UNIX_S)
        return self.store

    def round(self, settled=(), opened=()):
        meters = {one.window.meter: gpu(int(one.window.meter[-1])) for one in settled}
        return Round(
            opened=tuple(opened),
            settled=tuple(settled),
            meters=meters | {one.meter.meter: one.meter for one in opened},
            until_unix_s=UNIX_S + self.at_s,
            read_logs={},
        )

    def opened(self, index=0, counter_mj=1000):
        meter = gpu(index)
        self.counters[meter.meter] = counter_mj
        reading = LastReading(
            counter_mj=counter_mj, epoch=1, at_s=self.at_s, at_unix_s=UNIX_S + self.at_s
        )
        return Opened(meter=meter, reading=reading)

    def settled(self, shares, *, index=0, idle_mj=0, quarantine_mj=0, unattributed_mj=0, **window):
        """The next second's window; ``shares`` has legs, perhaps with the role."""
        name = f"GPU-{index}"
        doers = {(leg, "decode") if isinstance(leg, str) else leg: mj for leg, mj in shares.items()}
        metered_mj = sum(doers.values()) + idle_mj + quarantine_mj + unattributed_mj
        self.counters[name] = window.pop("counter_mj", self.counters[name] + metered_mj)
        begin_s = window.pop("begin_s", self.at_s)
        fields = {
            "meter": name,
            "epoch": 1,
            "counter_mj": self.counters[name],
            "metered_mj": metered_mj,
            "wrapped_mj": 0,
            "begin_s": begin_s,
            "end_s": begin_s + 1.0,
            "begin_unix_s": UNIX_S + begin_s,
            "end_unix_s": UNIX_S + begin_s + 1.0,
            "idle_mw": 70_000,
            "is_estimate": False,
        }
        return Settled(
            window=Window(**(fields | window)),
            shares=doers,
            unattributed_mj=unattributed_mj,
            idle_mj=idle_mj,
            quarantine_mj=quarantine_mj,
        )

    def book(self, *settled, opened=(), notes=(), seqs=None, until_s=None):
        done = self.round(settled, opened) if settled or opened else None
        until_unix_s = None if until_s is None else UNIX_S + until_s
        self.store.book(
            Booking(round=done, notes=notes, seqs=seqs or {}, settled_until_unix_s=until_unix_s)
        )
        self.at_s += 1.0

    def noted(self, *, started=(), ended=()):
        self.seq += 1
        return RequestsNoted(
            generation=DISPATCHER, seq=self.seq, started=tuple(started), ended=tuple(ended)
        )

    def read(self, function):
        with closing(open_to_read(self.path)) as connection:
            return function(Ledger(connection))

    def rows(self, query, *values):
        with closing(open_to_read(self.path)) as connection:
            return connection.execute(query, values).fetchall()

    def verdict(self):
        with closing(open_to_read(self.path)) as connection:
            return verify(connection)

    def problems(self):
        return self.verdict().problems


def started(number, *, listener="chat", wire_id=None):
    return StartedRequest(
        f"d9-{number}", wire_id or f"cmpl-{number}-0-0123abcd", listener, "m", UNIX_S
    )


def leg(name, *, role="decode", is_scrap=False):
    return EndedLeg(name, f"{role}-0", role, is_scrap)


def ended(number, *, legs=None, wire_id=None, ended_s=10.0, listener="chat", **changes):
    fields = {
        "request_id": f"d9-{number}",
        "wire_id": wire_id or f"cmpl-{number}-0-0123abcd",
        "listener": listener,
        "model": "m",
        "outcome": "stop",
        "arrived_unix_s": UNIX_S,
        "ended_unix_s": UNIX_S + ended_s,
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "output_tokens": 20,
        "legs": (leg(f"d9-{number}.1"),) if legs is None else tuple(legs),
    }
    return EndedRequest(**(fields | changes))
