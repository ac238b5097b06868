"""Read a ledger: the rows that reports are made of, and one response's figures."""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from nodeserve.energy.rows import EnergyRow, MeterRow, TokenRow
from nodeserve.energy.settle import HOUR_S
from nodeserve.ledger.schema import ROLES

UNKNOWN: Final = "#unknown"
"""The listener and model of energy whose request nobody has told the ledger of."""

PREFIXES: Final = ("", "cmpl-", "chatcmpl-", "resp_", "embd-", "pool-", "classify-")
"""What gateways put before an id; the client's own ``X-Request-Id`` comes back behind one."""

_SUFFIX: Final = re.compile(r"(?:[-_]\d{1,6})*(?:-[0-9a-f]{8})?")
"""What gateways put behind it. vLLM 0.32's Python server: the number of the prompt in a list
(``-0``) or of a turn (``_0``), then ``-`` and 8 hexadecimal digits."""

MAX_FOUND: Final = 1024
"""Requests of one response: ``n`` choices of each of its prompts."""

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

_REQUESTS: Final = """
SELECT key, request_id, wire_id, choice, listener, model, outcome, arrived_unix_ms,
    ended_unix_ms, prompt_tokens, cached_tokens, output_tokens, scrap_tokens, resumed, legs,
    settled
FROM request JOIN place USING (place_id)
WHERE wire_id = ?1 OR (wire_id > ?1 || '-' AND wire_id < ?1 || '.')
    OR (wire_id > ?1 || '_' AND wire_id < ?1 || '`')
ORDER BY key DESC LIMIT ?2
"""

_FOREVER: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Whose ledger it is."""

    node_id: str
    name: str
    zone: str
    created_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnergy:
    """What one request of a response has used above idle; energy in mJ.

    ``prefill_mj`` are of workers that only prefill and ``decode_mj`` of those that only decode;
    what a worker that does both used is in ``aggregated_mj``. None of these includes
    ``scrap_mj``. All are None where nothing of its energy is known. It is provisional until
    ``is_settled``. ``gaps`` are causes for which energy of its meters and time is booked to
    nobody, so that the figures may be too low.
    """

    request_id: str
    wire_id: str
    choice: int
    listener: str
    model: str
    outcome: str | None
    arrived_unix_s: float | None
    ended_unix_s: float | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    scrap_tokens: int
    resumed: int
    is_settled: bool
    prefill_mj: int | None
    decode_mj: int | None
    aggregated_mj: int | None
    scrap_mj: int | None
    meters: dict[str, int] = field(default_factory=dict)
    gaps: tuple[str, ...] = ()

    @property
    def total_mj(self) -> int | None:
        """All of it, or None."""
        return sum(self.meters.values()) if self.meters or self.scrap_mj is not None else None


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

    def find(self, response_id: str) -> list[RequestEnergy]:
        """Return the requests behind a response, oldest first; empty for an unknown one.

        There are several where it has several choices or prompts, and where clients have used
        the same ``X-Request-Id`` again. That id alone finds them too.
        """
        found = {}
        for prefix in PREFIXES:
            for row in self._db.execute(_REQUESTS, (prefix + response_id, MAX_FOUND)):
                if _SUFFIX.fullmatch(row[2], len(prefix) + len(response_id)):
                    found[row[0]] = row
            if found:
                break
        return [self._request(found[key]) for key in sorted(found)]

    def _request(self, row: tuple) -> RequestEnergy:  # type: ignore[type-arg]
        (key, request_id, wire_id, choice, listener, model, outcome, arrived, ended) = row[:9]
        prompt, cached, output, scrap, resumed, legs, settled = row[9:]
        by_role = dict.fromkeys(ROLES, 0)
        scrap_mj = 0
        meters: dict[str, int] = {}
        shares = self._db.execute(
            "SELECT role, is_scrap, meter, mj FROM share JOIN meter USING (meter_id)"
            " WHERE request_key = ?",
            (key,),
        ).fetchall()
        for role, is_scrap, meter, mj in shares:
            meters[meter] = meters.get(meter, 0) + mj
            if is_scrap:
                scrap_mj += mj
            else:
                by_role[ROLES[role]] += mj
        is_known = bool(shares) or (outcome is not None and not legs)
        return RequestEnergy(
            request_id=request_id,
            wire_id=wire_id,
            choice=choice,
            listener=listener,
            model=model,
            outcome=outcome,
            arrived_unix_s=None if arrived is None else arrived / 1000,
            ended_unix_s=None if ended is None else ended / 1000,
            prompt_tokens=prompt,
            cached_tokens=cached,
            output_tokens=output,
            scrap_tokens=scrap,
            resumed=resumed,
            is_settled=bool(settled),
            prefill_mj=by_role["prefill"] if is_known else None,
            decode_mj=by_role["decode"] if is_known else None,
            aggregated_mj=by_role["aggregated"] if is_known else None,
            scrap_mj=scrap_mj if is_known else None,
            meters=meters,
            gaps=self._gaps(key, arrived, ended),
        )

    def _gaps(self, key: int, arrived: int | None, ended: int | None) -> tuple[str, ...]:
        """Return for which causes energy is in quarantine in a request's time on its meters."""
        if arrived is None:
            return ()
        rows = self._db.execute(
            "SELECT DISTINCT cause FROM window WHERE cause IS NOT NULL AND quarantine_mj > 0"
            " AND meter_id IN (SELECT meter_id FROM share WHERE request_key = ?)"
            " AND end_unix_ms > ? AND (?3 IS NULL OR begin_unix_ms < ?3) ORDER BY cause",
            (key, arrived, ended),
        )
        return tuple(cause for (cause,) in rows)


def _hours(since_unix_s: float, until_unix_s: float | None) -> tuple[int, int]:
    """Return which hours begin in an interval, the second not among them."""
    first = -int(-since_unix_s // HOUR_S)
    return first, _FOREVER if until_unix_s is None else -int(-until_unix_s // HOUR_S)
