"""Read all that reports need of a ledger, as one commit left it."""

from contextlib import closing
from pathlib import Path
from typing import Final

from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.merge import MeterSpan, Part
from nodeserve.ledger.database import open_to_read
from nodeserve.ledger.reading import Ledger

_SPANS: Final = """
SELECT meter, kind,
    max(n.created_unix_ms, min(
        ifnull((SELECT min(begin_unix_ms) FROM window w WHERE w.meter_id = m.meter_id),
            m.at_unix_ms),
        ifnull((SELECT min(hour) * 3600000 FROM meter_hour h
            WHERE h.meter_id = m.meter_id), m.at_unix_ms))),
    at_unix_ms
FROM meter m, node n ORDER BY meter
"""


def read_part(path: Path, *, since_unix_s: float = 0.0, until_unix_s: float | None = None) -> Part:
    """Return a ledger's rows of hours that begin in the interval, and all that it covers.

    A node may write it meanwhile: what is read is one commit's.

    Raises:
        ConfigError: There is none, or it is none.
        CapacityError: It cannot be read at present.
    """
    with closing(open_to_read(path)) as connection:
        connection.execute("BEGIN")
        ledger = Ledger(connection)
        rows = LedgerRows(
            energy=list(ledger.energy(since_unix_s, until_unix_s)),
            meters=list(ledger.meters(since_unix_s, until_unix_s)),
            tokens=list(ledger.tokens(since_unix_s, until_unix_s)),
        )
        spans = [
            MeterSpan(meter=meter, kind=kind, begin_unix_ms=begin, end_unix_ms=end)
            for meter, kind, begin, end in connection.execute(_SPANS)
        ]
    return Part(
        name=str(path),
        node_id=ledger.node.node_id,
        node=ledger.node.name,
        spans=spans,
        rows=rows,
    )
