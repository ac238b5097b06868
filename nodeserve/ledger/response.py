"""What one response has used, found by the id that its client got."""

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nodeserve.errors import RequestError
from nodeserve.ledger.database import failure, open_to_read
from nodeserve.ledger.schema import ROLES

MAX_FOUND: Final = 1024
"""Requests of one response: ``n`` choices of each of its prompts."""

_RANDOM: Final = "-[0-9a-f]{8}"
"""What both of vLLM's servers put behind every id: 8 random hexadecimal digits."""

SUFFIXES: Final = {
    "cmpl-": re.compile(rf"(?:-\d{{1,6}})?{_RANDOM}"),
    "chatcmpl-": re.compile(rf"(?:_\d{{1,6}})?{_RANDOM}"),
    "resp_": re.compile(rf"_\d{{1,6}}{_RANDOM}"),
    "": re.compile(rf"(?:[-_]\d{{1,6}})?(?:{_RANDOM})?"),
}
"""What stands behind a client's id on the wire, by what it begins with. Source: vLLM 0.32, as
seen at the dispatcher: its Python server puts ``-`` and the place of a prompt in its list behind
a completion's, ``_`` and the place of a conversation in a batch behind a chat's, and ``_`` and the
number of the turn behind a response's; its Rust server puts nothing. The number of one of ``n``
choices, ``0_`` and so on, stands in front, and in a column of its own here."""

_REQUESTS: Final = """
SELECT key, request_id, wire_id, choice, listener, model, outcome, arrived_unix_ms,
    ended_unix_ms, prompt_tokens, cached_tokens, output_tokens, scrap_tokens, resumed, legs,
    settled
FROM request JOIN place USING (place_id)
WHERE wire_id = ?1 OR (wire_id > ?1 || '-' AND wire_id < ?1 || '.')
    OR (wire_id > ?1 || '_' AND wire_id < ?1 || '`')
ORDER BY key DESC LIMIT ?2
"""

_GAPS: Final = """
SELECT DISTINCT cause FROM window WHERE cause IS NOT NULL AND quarantine_mj > 0
    AND meter_id IN (SELECT meter_id FROM share WHERE request_key = ?1)
    AND end_unix_ms > ?2 AND (?3 IS NULL OR begin_unix_ms < ?3) ORDER BY cause
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnergy:
    """What one request of a response has used above idle; energy in mJ.

    ``prefill_mj`` are of workers that only prefill and ``decode_mj`` of those that only decode;
    what a worker that does both used is ``aggregated_mj``. None of these includes ``scrap_mj``,
    which was thrown away or computed again. All are None where nothing is known of its energy.
    It is provisional until ``is_settled``. ``gaps`` are causes for which energy of its meters and
    time is in quarantine, so that the figures may be too low.
    """

    request_id: str
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseEnergy:
    """What a response has used: the sum over its requests, which are one per choice and prompt.

    Where nothing is known of the energy of one of them, nothing is known of the sum.
    """

    response_id: str
    requests: tuple[RequestEnergy, ...]

    @property
    def is_settled(self) -> bool:
        """Whether no figure will change any more."""
        return all(request.is_settled for request in self.requests)

    @property
    def prefill_mj(self) -> int | None:
        """Of workers that only prefill."""
        return _sum([request.prefill_mj for request in self.requests])

    @property
    def decode_mj(self) -> int | None:
        """Of workers that only decode."""
        return _sum([request.decode_mj for request in self.requests])

    @property
    def aggregated_mj(self) -> int | None:
        """Of workers that do both."""
        return _sum([request.aggregated_mj for request in self.requests])

    @property
    def scrap_mj(self) -> int | None:
        """Of what was thrown away or computed again."""
        return _sum([request.scrap_mj for request in self.requests])

    @property
    def total_mj(self) -> int | None:
        """All of these."""
        return _sum([self.prefill_mj, self.decode_mj, self.aggregated_mj, self.scrap_mj])


def read_response(path: Path, response_id: str) -> ResponseEnergy:
    """Return what a response has used, from the ledger at ``path``.

    ``response_id`` is what the client got: ``cmpl-X``, ``chatcmpl-X`` or ``resp_X``; the longer
    one of a node's status will do, and an ``X`` that
    the client has sent as ``X-Request-Id`` will do. Where that was used more than once, the sum
    is over all of it.

    Raises:
        RequestError: The ledger knows no such response.
        ConfigError: There is no ledger, or it is none.
        CapacityError: It cannot be read at present.
    """
    with closing(open_to_read(path)) as connection:
        try:
            requests = find_requests(connection, response_id)
        except sqlite3.Error as error:
            raise failure(path, error) from error
    if not requests:
        raise RequestError(
            f"ledger {path}: knows no response {response_id}; it is booked about a second after "
            "its first token, and dropped after [accounting] request_days"
        )
    return ResponseEnergy(response_id=response_id, requests=tuple(requests))


def find_requests(connection: sqlite3.Connection, response_id: str) -> list[RequestEnergy]:
    """Return the requests behind a response, oldest first; empty for an unknown one."""
    own = next((prefix for prefix in SUFFIXES if prefix and response_id.startswith(prefix)), "")
    whole: dict[int, tuple] = {}  # type: ignore[type-arg]
    parts: dict[int, tuple] = {}  # type: ignore[type-arg]
    for prefix in [own] if own else SUFFIXES:
        begin = response_id if own else prefix + response_id
        for row in connection.execute(_REQUESTS, (begin, MAX_FOUND)):
            rest = row[2][len(begin) :]
            if not rest:
                whole[row[0]] = row  # the id on the wire, as the node's status has it
            elif SUFFIXES[prefix].fullmatch(rest):
                found = parts if rest.startswith("_") and prefix != "resp_" else whole
                found[row[0]] = row
    # An id that ends in _1 is another one, if there is one without.
    found = whole or parts
    return [_request(connection, found[key]) for key in sorted(found)]


def _request(db: sqlite3.Connection, row: tuple) -> RequestEnergy:  # type: ignore[type-arg]
    key, request_id, _, choice, listener, model, outcome, arrived, ended = row[:9]
    prompt, cached, output, scrap, resumed, legs, settled = row[9:]
    by_role = dict.fromkeys(ROLES, 0)
    scrap_mj = 0
    meters: dict[str, int] = {}
    shares = db.execute(
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
    gaps = [] if arrived is None else db.execute(_GAPS, (key, arrived, ended)).fetchall()
    return RequestEnergy(
        request_id=request_id,
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
        gaps=tuple(cause for (cause,) in gaps),
    )


def _sum(parts: list[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
