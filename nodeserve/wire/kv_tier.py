"""What engines and the block manager say to each other about the tiers below the GPU.

Every message is a frozen msgspec Struct, tagged by its name, as msgpack in one ZeroMQ frame. The
block manager binds a ROUTER; each engine's scheduler connects a DEALER whose identity is its
generation in decimal digits. No message waits for another: an engine that hears nothing goes on
as if nothing was found, so a block manager that is gone or slow costs hits and nothing else.

A *key* is a block's 32-byte content hash (vLLM's sha256_cbor, chained, so it stands for the whole
prefix). Keys travel joined, ``num_keys * KEY_BYTES`` bytes, and slots as little-endian 32-bit
numbers, ``ABSENT`` where there is none: unpacking a list costs more than looking its keys up.
"""

from typing import Annotated, Final

import msgspec

from nodeserve.wire.codec import GARBAGE, encode, refuse

KEY_BYTES: Final = 32
ABSENT: Final = 0xFFFF_FFFF
"""In the place of a slot: the key is in no slot, or may not be stored now."""

HELLO_CALL: Final = 0
"""The look-up that holds what an engine was reading when it said hello; its own begin at 1."""

Copied = Annotated[int, msgspec.Meta(ge=0, le=1 << 44)]
"""Bytes or microseconds that copies took since the message before: no engine copies 16 TiB."""

Handle = dict[str, int | str]
"""As ``transfer.base.Handle``: what a peer needs to open shared memory."""


class _Message(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """A message about KV tiers."""


# ----------------------------------------------------------- engine to block manager


class KvHello(_Message, frozen=True, kw_only=True):
    """An engine wants the host tier; said again after ``KvWho``, and when nothing is answered.

    A block manager that knows the engine welcomes it again and changes nothing else.

    ``model`` is the weights' directory. ``kv_format`` digests everything else that decides what
    a block's bytes mean: model config, dtypes, layout, block size, KV format of the vLLM release.
    ``block_bytes`` is one block over all layers and all ranks, in the order that does not depend
    on tensor parallelism. ``reading`` and ``writing`` are the slots that it still holds, and
    ``writing_keys`` the keys of the latter: a successor must not reuse them. What is being read
    is pinned under HELLO_CALL, for the engine to release when all of it is read.
    """

    worker: str
    generation: int
    pid: int
    model: str
    kv_format: bytes
    block_bytes: int
    reading: bytes = b""
    writing: bytes = b""
    writing_keys: bytes = b""


class KvLookup(_Message, frozen=True, kw_only=True):
    """Where are these blocks of one request, in the order of the prompt?

    What is found in the host tier is pinned for this engine until ``KvRelease`` of ``call_id``.
    What is found on disk is promoted, if room and ``deadline_s`` allow: on the monotonic clock,
    which all processes of a machine share; 0 where the disk is not to be waited for.
    """

    call_id: int
    listener: str
    keys: bytes
    deadline_s: float = 0.0


class KvRelease(_Message, frozen=True, kw_only=True):
    """The pins of these lookups are needed no more. Unknown ones are passed over.

    ``read_bytes`` were copied out of slots since the last such message, by copies that took
    ``read_us`` together; those of one rank stand for the ranks that copy beside each other.
    """

    call_ids: tuple[int, ...]
    read_bytes: Copied = 0
    read_us: Copied = 0


class KvReserve(_Message, frozen=True, kw_only=True):
    """These blocks of one request could be stored: ``parent`` is the key before the first, or b"".

    Answered by ``KvReserved``. The engine may write into a reserved slot until it says
    ``KvPublish`` or ``KvAbandon`` of it.
    """

    call_id: int
    listener: str
    keys: bytes
    parent: bytes = b""


class KvPublish(_Message, frozen=True, kw_only=True):
    """All ranks have written these reserved slots; now anybody may read them.

    ``written_bytes`` and ``written_us`` are of copies into slots, as those of ``KvRelease``.
    """

    slots: bytes
    written_bytes: Copied = 0
    written_us: Copied = 0


class KvAbandon(_Message, frozen=True, kw_only=True):
    """These reserved slots will not be written, or what is in them is not to be trusted."""

    slots: bytes


# ----------------------------------------------------------- block manager to engine


class KvWelcome(_Message, frozen=True, kw_only=True):
    """The tier as this engine may use it.

    Slot ``s`` lies in arena ``s // slots_per_arena`` at
    ``(s % slots_per_arena) * slot_stride``; its entry in the directory says what it holds.
    ``namespace`` is the content digest that keys are under; the same for engines that share.
    ``arenas`` and ``directory`` are handles of shared memory.
    """

    generation: int
    namespace: bytes
    num_slots: int
    slots_per_arena: int
    slot_stride: int
    arenas: tuple[Handle, ...]
    directory: Handle


class KvRefused(_Message, frozen=True, kw_only=True):
    """This engine gets no host tier, for ``reason``; one line for people."""

    reason: str


class KvWho(_Message, frozen=True, kw_only=True):
    """The block manager does not know the sender, for it is new: say ``KvHello`` again."""


class KvFound(_Message, frozen=True, kw_only=True):
    """The answer to a lookup: a slot per key, ABSENT for misses.

    ``num_pending`` keys are being read from disk: another KvFound of this call follows, with
    all slots anew, at the latest at the lookup's deadline; it then has ``num_pending == 0``.
    """

    call_id: int
    slots: bytes
    num_pending: int = 0


class KvReserved(_Message, frozen=True, kw_only=True):
    """The answer to a reservation: a slot per key, ABSENT for those not to be stored."""

    call_id: int
    slots: bytes


Request = KvHello | KvLookup | KvRelease | KvReserve | KvPublish | KvAbandon
Answer = KvWelcome | KvRefused | KvWho | KvFound | KvReserved

_REQUESTS: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_ANSWERS: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)


def encode_message(message: Request | Answer) -> bytes:
    """Return the one frame that carries ``message``."""
    return encode(message)


def decode_request(frame: bytes) -> Request:
    """Return what an engine says.

    Raises:
        ValueError: The frame is not such a message; the caller drops and counts it.
    """
    try:
        return _REQUESTS.decode(frame)
    except GARBAGE as error:
        refuse("KV tier request", frame, error)


def decode_answer(frame: bytes) -> Answer:
    """Return what the block manager says.

    Raises:
        ValueError: The frame is not such a message; the caller drops and counts it.
    """
    try:
        return _ANSWERS.decode(frame)
    except GARBAGE as error:
        refuse("KV tier answer", frame, error)


def join_slots(slots: list[int]) -> bytes:
    """Return slot numbers as they travel."""
    return b"".join(slot.to_bytes(4, "little") for slot in slots)


def split_slots(joined: bytes) -> list[int]:
    """Return slot numbers that came.

    Raises:
        ValueError: The length is no multiple of four.
    """
    return list(memoryview(_whole(joined, 4)).cast("I"))


def split_keys(joined: bytes) -> list[bytes]:
    """Return keys that came.

    Raises:
        ValueError: The length is no multiple of ``KEY_BYTES``.
    """
    _whole(joined, KEY_BYTES)
    return [joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES)]


def _whole(joined: bytes, size: int) -> bytes:
    if len(joined) % size:
        text = f"{len(joined)} bytes are not a whole number of {size}-byte items"
        raise ValueError(text)
    return joined
