"""The tables of the ledger: what is in them, and what must hold between them.

Energy is in integer mJ, tokens are counts, an ``hour`` counts hours since 1970 (UTC). A *place*
is a listener and a model. Rows of sums have a ``seal`` over their own values, so that a changed
one can be named; windows are chained by ``digest``, so that none can be changed or left out.

What holds at every commit, which ``verify`` proves:

- per window: ``metered = allocated + idle + quarantine``;
- per epoch of a meter: what its windows metered is what its counter went forward;
- per meter and hour: what windows allocated is what legs, dropped requests and accounts bear;
- per hour and place: what requests ended with is what ``token_hour`` says.
"""

import struct
import zlib
from hashlib import blake2b
from typing import Final

VERSION: Final = 1
"""``PRAGMA user_version`` of a ledger like this."""

APPLICATION_ID: Final = 0x6E736C67
"""``PRAGMA application_id``: "nslg" in ASCII."""

ROLES: Final = ("none", "prefill", "decode", "aggregated")
"""``role`` columns are places in this: what a worker was used for, or no worker at all."""

TABLES: Final = """
CREATE TABLE node (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    node_id TEXT NOT NULL, name TEXT NOT NULL, zone TEXT NOT NULL,
    created_unix_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE meter (
    meter_id INTEGER PRIMARY KEY,
    meter TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, name TEXT NOT NULL, source TEXT NOT NULL,
    epoch INTEGER NOT NULL, counter_mj INTEGER NOT NULL, at_unix_ms INTEGER NOT NULL,
    windows INTEGER NOT NULL, head BLOB NOT NULL
) STRICT;

CREATE TABLE epoch (
    meter_id INTEGER NOT NULL, epoch INTEGER NOT NULL,
    first_mj INTEGER NOT NULL, last_mj INTEGER NOT NULL,
    wrapped_mj INTEGER NOT NULL, metered_mj INTEGER NOT NULL,
    PRIMARY KEY (meter_id, epoch),
    CHECK (metered_mj = last_mj - first_mj + wrapped_mj)
) STRICT, WITHOUT ROWID;

CREATE TABLE window (
    meter_id INTEGER NOT NULL, number INTEGER NOT NULL, epoch INTEGER NOT NULL,
    begin_unix_ms INTEGER NOT NULL, end_unix_ms INTEGER NOT NULL, span_ms INTEGER NOT NULL,
    hour INTEGER NOT NULL,
    metered_mj INTEGER NOT NULL CHECK (metered_mj >= 0),
    allocated_mj INTEGER NOT NULL CHECK (allocated_mj >= 0),
    idle_mj INTEGER NOT NULL CHECK (idle_mj >= 0),
    quarantine_mj INTEGER NOT NULL CHECK (quarantine_mj >= 0),
    cause TEXT, is_estimate INTEGER NOT NULL, is_idle_known INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (meter_id, number),
    CHECK (metered_mj = allocated_mj + idle_mj + quarantine_mj)
) STRICT, WITHOUT ROWID;

CREATE TABLE meter_hour (
    meter_id INTEGER NOT NULL, hour INTEGER NOT NULL, epoch INTEGER NOT NULL,
    windows INTEGER NOT NULL, last_number INTEGER NOT NULL, last_digest BLOB NOT NULL,
    span_ms INTEGER NOT NULL, metered_mj INTEGER NOT NULL, allocated_mj INTEGER NOT NULL,
    idle_mj INTEGER NOT NULL, quarantine_mj INTEGER NOT NULL, estimated_mj INTEGER NOT NULL,
    seal INTEGER NOT NULL,
    PRIMARY KEY (meter_id, hour, epoch),
    CHECK (metered_mj = allocated_mj + idle_mj + quarantine_mj)
) STRICT, WITHOUT ROWID;

CREATE TABLE run (
    run_key INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE sender (
    run_key INTEGER NOT NULL, generation INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (run_key, generation)
) STRICT, WITHOUT ROWID;

CREATE TABLE place (
    place_id INTEGER PRIMARY KEY,
    listener TEXT NOT NULL, model TEXT NOT NULL, UNIQUE (listener, model)
) STRICT;

CREATE TABLE request (
    key INTEGER PRIMARY KEY,
    run_key INTEGER NOT NULL, request_id TEXT NOT NULL,
    wire_id TEXT NOT NULL, choice INTEGER NOT NULL, place_id INTEGER NOT NULL,
    arrived_unix_ms INTEGER, ended_unix_ms INTEGER, outcome TEXT, end_hour INTEGER,
    prompt_role INTEGER NOT NULL DEFAULT 0, output_role INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0, cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0, scrap_tokens INTEGER NOT NULL DEFAULT 0,
    resumed INTEGER NOT NULL DEFAULT 0, legs INTEGER NOT NULL DEFAULT 0,
    settled INTEGER NOT NULL DEFAULT 0,
    UNIQUE (run_key, request_id)
) STRICT;
CREATE INDEX request_wire ON request (wire_id);
CREATE INDEX request_open ON request (ended_unix_ms) WHERE settled = 0;

CREATE TABLE scrap_leg (
    request_key INTEGER NOT NULL, leg INTEGER NOT NULL, PRIMARY KEY (request_key, leg)
) STRICT, WITHOUT ROWID;

CREATE TABLE share (
    request_key INTEGER NOT NULL, leg INTEGER NOT NULL, hour INTEGER NOT NULL,
    meter_id INTEGER NOT NULL, role INTEGER NOT NULL,
    mj INTEGER NOT NULL CHECK (mj >= 0), is_scrap INTEGER NOT NULL, seal INTEGER NOT NULL,
    PRIMARY KEY (request_key, leg, hour, meter_id, role)
) STRICT, WITHOUT ROWID;

CREATE TABLE account (
    account TEXT NOT NULL, hour INTEGER NOT NULL, meter_id INTEGER NOT NULL,
    mj INTEGER NOT NULL CHECK (mj >= 0), seal INTEGER NOT NULL,
    PRIMARY KEY (account, hour, meter_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE settled_hour (
    hour INTEGER NOT NULL, meter_id INTEGER NOT NULL, place_id INTEGER NOT NULL,
    role INTEGER NOT NULL, is_scrap INTEGER NOT NULL,
    mj INTEGER NOT NULL CHECK (mj >= 0), seal INTEGER NOT NULL,
    PRIMARY KEY (hour, meter_id, place_id, role, is_scrap)
) STRICT, WITHOUT ROWID;

CREATE TABLE token_hour (
    hour INTEGER NOT NULL, place_id INTEGER NOT NULL, role INTEGER NOT NULL,
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, scrap_tokens INTEGER NOT NULL, seal INTEGER NOT NULL,
    PRIMARY KEY (hour, place_id, role)
) STRICT, WITHOUT ROWID;

CREATE TABLE token_settled (
    hour INTEGER NOT NULL, place_id INTEGER NOT NULL, role INTEGER NOT NULL,
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, scrap_tokens INTEGER NOT NULL, seal INTEGER NOT NULL,
    PRIMARY KEY (hour, place_id, role)
) STRICT, WITHOUT ROWID;
"""

DIGEST_BYTES: Final = 16
GENESIS: Final = bytes(DIGEST_BYTES)
"""What the first window of a meter follows on."""

WINDOW_COLUMNS: Final = (
    *("meter_id", "number", "epoch", "begin_unix_ms", "end_unix_ms", "span_ms", "hour"),
    *("metered_mj", "allocated_mj", "idle_mj", "quarantine_mj", "cause"),
    *("is_estimate", "is_idle_known"),
)
"""What a window's digest is over, after that of the window before it."""


def digest_of(before: bytes, window: tuple[int | str | None, ...]) -> bytes:
    """Return the digest of a window, given by its WINDOW_COLUMNS, that follows on ``before``."""
    return blake2b(before + repr(window).encode(), digest_size=DIGEST_BYTES).digest()


def seal_of(*values: float | str | bytes | None) -> int:
    """Return the seal of a row with these values; SQLite calls it as ``seal_of(...)``."""
    try:
        packed = struct.pack(f"<{len(values)}q", *values)
    except struct.error:
        packed = repr(values).encode()
    return zlib.crc32(packed)


SEALED: Final = {
    "meter_hour": (
        *("meter_id", "hour", "epoch", "windows", "last_number", "last_digest", "span_ms"),
        *("metered_mj", "allocated_mj", "idle_mj", "quarantine_mj", "estimated_mj"),
    ),
    "share": ("request_key", "leg", "hour", "meter_id", "role", "mj", "is_scrap"),
    "account": ("account", "hour", "meter_id", "mj"),
    "settled_hour": ("hour", "meter_id", "place_id", "role", "is_scrap", "mj"),
    "token_hour": (
        *("hour", "place_id", "role", "requests", "prompt_tokens", "cached_tokens"),
        *("output_tokens", "scrap_tokens"),
    ),
    "token_settled": (
        *("hour", "place_id", "role", "requests", "prompt_tokens", "cached_tokens"),
        *("output_tokens", "scrap_tokens"),
    ),
}
"""Of each table with seals, the columns that they are over."""
