"""The log of the host tier, from which eviction policies can be compared afterwards.

Text, one line each: first ``nodeserve-kv-log 1 <num_slots> <block_bytes>``, again whenever a block
manager begins to write; then ``<ms> <op> <listener> <parent> <keys>``. ``ms`` are milliseconds
since that header, ``op`` is L for a look-up, S for blocks that an engine could store after
``parent``, E for an eviction. ``keys`` are base64 of 6 bytes a key, the first ones, and ``parent``
likewise; ``-`` where there is none. Blanks in a listener's name are written as ``_``.

Six bytes tell a million keys apart with 0.2 % risk of one mistake, at 8 characters a key.
"""

import base64
import binascii
import enum
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from nodeserve.errors import ConfigError
from nodeserve.wire.kv_tier import KEY_BYTES

MAGIC: Final = "nodeserve-kv-log"
VERSION: Final = 1
LOGGED_KEY_BYTES: Final = 6

_NONE: Final = "-"
_NUM_FIELDS: Final = 5
_NUM_HEADER_FIELDS: Final = 4


class Op(enum.StrEnum):
    """What a line of the log is about."""

    LOOK_UP = "L"
    STORE = "S"
    EVICT = "E"


class LogHeader(NamedTuple):
    """How large the tier was that wrote what follows."""

    num_slots: int
    block_bytes: int


class LogLine(NamedTuple):
    """One line of the log; keys are shortened ones."""

    at_s: float
    op: Op
    listener: str
    parent: bytes
    keys: tuple[bytes, ...]


def header(found: LogHeader) -> str:
    """Return the line that begins a log."""
    return f"{MAGIC} {VERSION} {found.num_slots} {found.block_bytes}\n"


def line(op: Op, listener: str, keys: bytes, parent: bytes = b"", *, at_s: float) -> str:
    """Return one line; ``keys`` are joined, ``KEY_BYTES`` each, ``at_s`` is since the header."""
    starts = range(0, len(keys), KEY_BYTES)
    short = b"".join([keys[at : at + LOGGED_KEY_BYTES] for at in starts])
    name = "_".join(listener.split()) or _NONE
    return (
        f"{at_s * 1000:.0f} {op} {name} {_written(parent[:LOGGED_KEY_BYTES])} {_written(short)}\n"
    )


def parse(lines: Iterable[str]) -> Iterator[LogHeader | LogLine]:
    """Yield what is in a log; a last line that was cut off is left out.

    Raises:
        ConfigError: It is no such log, or of another version.
    """
    seen_header = False
    for number, text in enumerate(lines, start=1):
        if not text.endswith("\n"):
            return
        fields = text.split()
        if fields[:1] == [MAGIC]:
            seen_header = True
            yield _parsed_header(fields, number)
        elif seen_header:
            yield _parsed(fields, number)
        else:
            message = f"line {number} does not begin with {MAGIC}; name a log that [kv] log wrote"
            raise ConfigError(message)


def _parsed_header(fields: list[str], number: int) -> LogHeader:
    if len(fields) != _NUM_HEADER_FIELDS or fields[1] != str(VERSION):
        text = f"line {number}: log of version {fields[1:2]}, this program reads {VERSION}"
        raise ConfigError(text)
    try:
        return LogHeader(int(fields[2]), int(fields[3]))
    except ValueError as error:
        text = f"line {number}: header {fields} has no sizes: {error}; the log is damaged"
        raise ConfigError(text) from error


def _parsed(fields: list[str], number: int) -> LogLine:
    try:
        if len(fields) != _NUM_FIELDS:
            text = f"{len(fields)} fields, not {_NUM_FIELDS}"
            raise ValueError(text)  # noqa: TRY301
        ms, op, listener, parent, keys = fields
        joined = _read(keys)
        starts = range(0, len(joined), LOGGED_KEY_BYTES)
        short = tuple(joined[at : at + LOGGED_KEY_BYTES] for at in starts)
        return LogLine(float(ms) / 1000, Op(op), listener, _read(parent), short)
    except (ValueError, binascii.Error) as error:
        text = f"line {number} is no line of a log: {error}; the log is damaged"
        raise ConfigError(text) from error


def _written(joined: bytes) -> str:
    return base64.b64encode(joined).decode() or _NONE


def _read(text: str) -> bytes:
    joined = b"" if text == _NONE else base64.b64decode(text, validate=True)
    if len(joined) % LOGGED_KEY_BYTES:
        message = f"{len(joined)} bytes of keys are not a multiple of {LOGGED_KEY_BYTES}"
        raise ValueError(message)
    return joined
