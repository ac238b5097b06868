"""Book what requests have used: their legs' energy, their tokens, their ends."""

import re
import sqlite3
from collections.abc import Iterable
from typing import Final

from nodeserve.energy.settle import HOUR_S, UNATTRIBUTED, Settled
from nodeserve.ledger.schema import ROLES
from nodeserve.wire.accounting import EndedLeg, EndedRequest, RequestsNoted, StartedRequest

MAX_KEYS: Final = 200_000
"""Requests and places whose numbers are remembered."""

MAX_NAME_CHARS: Final = 512
"""Of what a client may choose, such as a request's id; more is cut off."""

MAX_TOKENS: Final = 1 << 40
MAX_UNIX_S: Final = float(1 << 40)
"""What no request can reach; such figures are left out, for sums must hold."""

_CHOICE: Final = re.compile(r"(\d{1,9})_(?=\D)")
"""Of ``n`` choices, vLLM puts the number of each before the id: vllm/v1/engine/
parallel_sampling.py (0.32)."""

_ADD_SHARE: Final = """
INSERT INTO share
SELECT k, l, h, m, r, mj, s, seal_of(k, l, h, m, r, mj, s) FROM (
    SELECT ?1 AS k, ?2 AS l, ?3 AS h, ?4 AS m, ?5 AS r, ?6 AS mj,
        EXISTS (SELECT 1 FROM scrap_leg WHERE request_key = ?1 AND leg = ?2) AS s
) WHERE true
ON CONFLICT DO UPDATE SET mj = mj + excluded.mj,
    seal = seal_of(request_key, leg, hour, meter_id, role, mj + excluded.mj, is_scrap)
"""

_ADD_ACCOUNT: Final = """
INSERT INTO account VALUES (?1, ?2, ?3, ?4, seal_of(?1, ?2, ?3, ?4))
ON CONFLICT DO UPDATE SET mj = mj + excluded.mj,
    seal = seal_of(account, hour, meter_id, mj + excluded.mj)
"""

_ADD_TOKENS: Final = """
INSERT INTO token_hour VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
    seal_of(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8))
ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    output_tokens = output_tokens + excluded.output_tokens,
    scrap_tokens = scrap_tokens + excluded.scrap_tokens,
    seal = seal_of(hour, place_id, role, requests + excluded.requests,
        prompt_tokens + excluded.prompt_tokens, cached_tokens + excluded.cached_tokens,
        output_tokens + excluded.output_tokens, scrap_tokens + excluded.scrap_tokens)
"""

_END: Final = """
UPDATE request SET wire_id = ?, choice = ?, place_id = ?, arrived_unix_ms = ?,
    ended_unix_ms = ?, outcome = ?, end_hour = ?, prompt_role = ?, output_role = ?,
    prompt_tokens = ?, cached_tokens = ?, output_tokens = ?, scrap_tokens = ?, resumed = ?,
    legs = ?
WHERE key = ?
"""


class RequestBook:
    """The requests of one run of a node. All of it happens within the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, run_id: str) -> None:
        self._db = connection
        self._run_id = run_id
        self._run_key: int | None = None
        self._keys: dict[str, int] = {}
        self._places: dict[tuple[str, str], int] = {}

    @property
    def run_key(self) -> int:
        """The number of this run."""
        if self._run_key is None:
            self._db.execute(
                "INSERT INTO run VALUES (NULL, ?) ON CONFLICT DO NOTHING", (self._run_id,)
            )
            row = self._db.execute("SELECT run_key FROM run WHERE run_id = ?", (self._run_id,))
            self._run_key = int(row.fetchone()[0])
        return self._run_key

    def forget(self) -> None:
        """Forget what was looked up: the transaction that it was in is no more."""
        self._run_key = None
        self._keys.clear()
        self._places.clear()

    # --------------------------------------------------------------------------- energy

    def add_shares(self, settled: Settled, meter_id: int) -> None:
        """Book who used a window's energy."""
        hour = settled.window.hour
        begin_unix_ms = round(settled.window.begin_unix_s * 1000)
        unattributed_mj = settled.unattributed_mj
        shares = []
        for (leg_id, role), mj in settled.shares.items():
            request_id, leg = leg_of(leg_id)
            if leg is None:
                unattributed_mj += mj
                continue
            key = self._key(request_id, begin_unix_ms)
            shares.append((key, leg, hour, meter_id, ROLES.index(role), mj))
        self._db.executemany(_ADD_SHARE, shares)
        if unattributed_mj:
            self._db.execute(_ADD_ACCOUNT, (UNATTRIBUTED, hour, meter_id, unattributed_mj))

    # ------------------------------------------------------------------------- requests

    def note(self, noted: RequestsNoted) -> None:
        """Book starts and ends; what is booked already, or makes no sense, is left out."""
        for request in noted.started:
            if _is_time(request.arrived_unix_s):
                self._start(request)
        for ended in noted.ended:
            if _is_sound(ended):
                self._end(ended)

    def settle_until(self, until_unix_s: float) -> None:
        """Call settled what ended before a time until which all windows are booked."""
        self._db.execute(
            "UPDATE request SET settled = 1 WHERE settled = 0 AND ended_unix_ms <= ?",
            (round(until_unix_s * 1000),),
        )

    def _start(self, request: StartedRequest) -> None:
        wire_id, choice = _wire_id(request.wire_id)
        self._db.execute(
            "UPDATE request SET wire_id = ?, choice = ?, place_id = ?, arrived_unix_ms = ?"
            " WHERE key = ? AND outcome IS NULL",
            (
                *(wire_id, choice, self._place(request.listener, request.model)),
                round(request.arrived_unix_s * 1000),
                self._key(request.request_id, None),
            ),
        )

    def _end(self, ended: EndedRequest) -> None:
        key = self._key(ended.request_id, None)
        row = self._db.execute("SELECT outcome FROM request WHERE key = ?", (key,)).fetchone()
        if row[0] is not None:
            return
        wire_id, choice = _wire_id(ended.wire_id)
        place_id = self._place(ended.listener, ended.model)
        hour = int(ended.ended_unix_s // HOUR_S)
        prompt_role, output_role = _roles(ended.legs)
        tokens = (
            *(ended.prompt_tokens, ended.cached_tokens, ended.output_tokens),
            ended.scrap_tokens,
        )
        self._db.execute(
            _END,
            (
                *(wire_id, choice, place_id, round(ended.arrived_unix_s * 1000)),
                *(round(ended.ended_unix_s * 1000), ended.outcome, hour),
                *(prompt_role, output_role, *tokens, ended.resumed, len(ended.legs), key),
            ),
        )
        self._db.executemany(
            _ADD_TOKENS,
            [(hour, place_id, *row) for row in token_rows(prompt_role, output_role, tokens)],
        )
        for leg in ended.legs:
            if leg.is_scrap:
                self._scrap(key, leg)

    def _scrap(self, key: int, leg: EndedLeg) -> None:
        """Book as scrap what a leg has used, and what is still to be booked for it."""
        _, number = leg_of(leg.leg_id)
        if number is None:
            return
        self._db.execute(
            "INSERT INTO scrap_leg VALUES (?, ?) ON CONFLICT DO NOTHING", (key, number)
        )
        self._db.execute(
            "UPDATE share SET is_scrap = 1,"
            " seal = seal_of(request_key, leg, hour, meter_id, role, mj, 1)"
            " WHERE request_key = ? AND leg = ?",
            (key, number),
        )

    def _key(self, request_id: str, seen_unix_ms: int | None) -> int:
        """Return a request's number; one not heard of before gets one, of no listener yet."""
        found = self._keys.get(request_id)
        if found is not None:
            return found
        row = self._db.execute(
            "SELECT key FROM request WHERE run_key = ? AND request_id = ?",
            (self.run_key, request_id),
        ).fetchone()
        if row is None:
            row = self._db.execute(
                "INSERT INTO request (run_key, request_id, wire_id, choice, place_id,"
                " arrived_unix_ms) VALUES (?, ?, '', 0, ?, ?) RETURNING key",
                (self.run_key, request_id, self._place("", ""), seen_unix_ms),
            ).fetchone()
        if len(self._keys) >= MAX_KEYS:
            self._keys.clear()
        found = self._keys[request_id] = int(row[0])
        return found

    def _place(self, listener: str, model: str) -> int:
        name = (listener[:MAX_NAME_CHARS], model[:MAX_NAME_CHARS])
        found = self._places.get(name)
        if found is not None:
            return found
        self._db.execute("INSERT INTO place VALUES (NULL, ?, ?) ON CONFLICT DO NOTHING", name)
        row = self._db.execute(
            "SELECT place_id FROM place WHERE listener = ? AND model = ?", name
        ).fetchone()
        if len(self._places) >= MAX_KEYS:
            self._places.clear()
        found = self._places[name] = int(row[0])
        return found


def token_rows(
    prompt_role: int, output_role: int, tokens: tuple[int, int, int, int]
) -> Iterable[tuple[int, ...]]:
    """Return an ended request's tokens by role: role, requests, prompt, cached, output, scrap.

    Scrap is with the output: most of it was generated.
    """
    prompt, cached, output, scrap = tokens
    if prompt_role == output_role:
        return [(output_role, 1, prompt, cached, output, scrap)]
    return [(prompt_role, 0, prompt, cached, 0, 0), (output_role, 1, 0, 0, output, scrap)]


def leg_of(leg_id: str) -> tuple[str, int | None]:
    """Return a leg's request and its number; None for the id of no leg."""
    request_id, _, number = leg_id.rpartition(".")
    if not request_id or not number.isdecimal() or len(number) > 9:
        return leg_id, None
    return request_id, int(number)


def _is_time(unix_s: float) -> bool:
    return 0 <= unix_s < MAX_UNIX_S


def _is_sound(ended: EndedRequest) -> bool:
    """Whether a request's end can be booked at all."""
    tokens = (ended.prompt_tokens, ended.cached_tokens, ended.output_tokens, ended.scrap_tokens)
    return (
        _is_time(ended.arrived_unix_s)
        and _is_time(ended.ended_unix_s)
        and all(0 <= count < MAX_TOKENS for count in (*tokens, ended.resumed))
    )


def _wire_id(wire_id: str) -> tuple[str, int]:
    """Return a gateway's id without the number of the choice, and that."""
    wire_id = wire_id[:MAX_NAME_CHARS]
    match = _CHOICE.match(wire_id)
    return (wire_id, 0) if match is None else (wire_id[match.end() :], int(match[1]))


def _roles(legs: tuple[EndedLeg, ...]) -> tuple[int, int]:
    """Return which role computed the prompt, and which generated; 0 for none."""
    useful = [leg for leg in legs if not leg.is_scrap] or list(legs)
    if not useful:
        return 0, 0
    return _role(useful[0].role), _role(useful[-1].role)


def _role(role: str) -> int:
    return ROLES.index(role) if role in ROLES else 0
