"""msgpack without surprises: one encoder, and one error for all that hostile bytes can cause."""

from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

import msgspec

T = TypeVar("T")

GARBAGE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, TypeError)
"""All that msgspec raises on hostile bytes; TypeError is its word for an unhashable map key."""

_encoder: Final = msgspec.msgpack.Encoder()
encode: Final = _encoder.encode

decode_any: Final = msgspec.msgpack.Decoder().decode
decode_raws: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
NIL: Final = encode(None)
_decode_map: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode


def refuse(what: str, frame: bytes | msgspec.Raw, error: Exception | str) -> NoReturn:
    """Raise the ValueError that says which frame cannot be read and why."""
    text = f"{what} of {memoryview(frame).nbytes} bytes cannot be read: {error}"
    raise ValueError(text) from (error if isinstance(error, Exception) else None)


def decoded(decode: Callable[[bytes], T], what: str, frame: bytes) -> T:
    """Return what ``decode`` makes of a frame; raises ValueError for garbage."""
    try:
        return decode(frame)
    except GARBAGE as error:
        refuse(what, frame, error)


def decode_map(frame: bytes) -> dict[str, Any]:
    """Return a message that is a map, such as an engine's ready response."""
    return decoded(_decode_map, "map", frame)
