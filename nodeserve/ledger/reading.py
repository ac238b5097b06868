"""Read a ledger: the rows that reports are made of."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nodeserve.energy.rows import EnergyRow, MeterRow, TokenRow
from nodeserve.energy.settle import HOUR_S
from nodeserve.ledger.schema import ROLES

UNKNOWN: Final = "#unknown"
"""The listener and model of energy whose request nobody has told the ledger of."""

_ENERGY: Final = """
SELECT hour, p.listener, p.model, role, m.meter,
    sum(CASE WHEN is_scrap THEN 0 ELSE mj END), sum(CASE WHEN is_scrap THEN mj ELSE 0 END)
FROM (
    SELECT s.hour, s.meter_id, r.place_id, s.role, s.is_scrap, s.mj
        FROM share s JOIN request r ON r.key = s.request_key
        WHERE s.hour >= ?1 AND s.hour < ?2
    UNION ALL SELECT hour, meter_id, place_id, role, is_scrap, mj FROM settled_hour
        WHERE hour >= ?1 AND hour < ?2
) JOIN place p USING (place_id) JOIN meter m USING (meter_id)
GROUP BY hour, place_id, role, meter_id ORDER BY hour, p.listener, p.model, role, m.meter
"""

_ACCOUNTS: Final = """
SELECT hour, account, m.meter, mj FROM account JOIN meter m USING (meter_id)
WHERE hour >= ?1 AND hour < ?2 ORDER BY hour, account, m.meter
"""

_METERS: Final = """
SELECT hour, m.meter, m.kind, m.name, sum(metered), sum(allocated), sum(idle), sum(quarantine),
    sum(span), sum(estimated)
FROM (
    SELECT meter_id, hour, metered_mj AS metered, allocated_mj AS allocated, idle_mj AS idle,
        quarantine_mj AS quarantine, span_ms AS span,
        CASE WHEN is_estimate THEN metered_mj ELSE 0 END AS estimated
        FROM window WHERE hour >= ?1 AND hour < ?2
    UNION ALL SELECT meter_id, hour, metered_mj, allocated_mj, idle_mj, quarantine_mj, span_ms,
        estimated_mj FROM meter_hour WHERE hour >= ?1 AND hour < ?2
) JOIN meter m USING (meter_id) GROUP BY hour, meter_id ORDER BY hour, m.meter
"""

_TOKENS: Final = """
SELECT hour, p.listener, p.model, role, requests, prompt_tokens, cached_tokens, output_tokens,
    scrap_tokens
FROM token_hour JOIN place p USING (place_id)
WHERE hour >= ?1 AND hour < ?2 ORDER BY hour, p.listener, p.model, role
"""

_FOREVER: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Whose ledger it is."""

    node_id: str
    name: str
    zone: str
    created_unix_s: float


class Ledger:
    """A ledger that is open to be read; see ``database.open_to_read``.

    Rows are of hours that begin at ``since_unix_s`` or later, and before ``until_unix_s``.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        row = connection.execute("SELECT node_id, name, zone, created_unix_ms FROM node").fetchone()
        self.node = Node(node_id=row[0], name=row[1], zone=row[2], created_unix_s=row[3] / 1000)

    def energy(
        self, since_unix_s: float = 0.0, until_unix_s: float | None = None
    ) -> Iterator[EnergyRow]:
        """Yield what requests have used, and what nobody is known to have, by listener."""
        hours = _hours(since_unix_s, until_unix_s)
        whose = {"node": self.node.name, "zone": self.node.zone}
        for hour, listener, model, role, meter, useful, scrap in self._db.execute(_ENERGY, hours):
            yield EnergyRow(
                **whose,
                hour_unix_s=hour * HOUR_S,
                listener=listener or UNKNOWN,
                model=model or UNKNOWN,
                role=ROLES[role],
                meter=meter,
                useful_mj=useful,
                scrap_mj=scrap,
            )
        for hour, account, meter, mj in self._db.execute(_ACCOUNTS, hours):
            yield EnergyRow(
                **whose,
                hour_unix_s=hour * HOUR_S,
                listener=account,
                model="",
                role=ROLES[0],
                meter=meter,
                useful_mj=mj,
                scrap_mj=0,
            )

    def meters(
        self, since_unix_s: float = 0.0, until_unix_s: float | None = None
    ) -> Iterator[MeterRow]:
        """Yield what meters have counted."""
        for row in self._db.execute(_METERS, _hours(since_unix_s, until_unix_s)):
            hour, meter, kind, name, metered, allocated, idle, quarantine, span_ms, estimated = row
            yield MeterRow(
                node=self.node.name,
                zone=self.node.zone,
                hour_unix_s=hour * HOUR_S,
                meter=meter,
                kind=kind,
                name=name,
                metered_mj=metered,
                allocated_mj=allocated,
                idle_mj=idle,
                quarantine_mj=quarantine,
                metered_s=span_ms / 1000,
                estimated_mj=estimated,
            )

    def tokens(
        self, since_unix_s: float = 0.0, until_unix_s: float | None = None
    ) -> Iterator[TokenRow]:
        """Yield the tokens of requests by the hour in which they ended."""
        for row in self._db.execute(_TOKENS, _hours(since_unix_s, until_unix_s)):
            hour, listener, model, role, requests, prompt, cached, output, scrap = row
            yield TokenRow(
                node=self.node.name,
                zone=self.node.zone,
                hour_unix_s=hour * HOUR_S,
                listener=listener,
                model=model,
                role=ROLES[role],
                requests=requests,
                prompt_tokens=prompt,
                cached_tokens=cached,
                output_tokens=output,
                scrap_tokens=scrap,
            )


def _hours(since_unix_s: float, until_unix_s: float | None) -> tuple[int, int]:
    """Return which hours begin in an interval, the second not among them."""
    first = -int(-since_unix_s // HOUR_S)
    return first, _FOREVER if until_unix_s is None else -int(-until_unix_s // HOUR_S)
