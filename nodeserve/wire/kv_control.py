"""What the supervisor, the block manager and the operator say to each other.

These are control messages like those of ``wire.control``, which knows them by its union.
The block manager's identity on the control channel is its generation in decimal digits.
"""

import msgspec


class _Message(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """A control message."""


class KvTierLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One tier: ``host`` or ``disk``. Sizes are of now, counters since the process started.

    ``slots`` is how many blocks there is room for, 0 where that is not known: disk is bounded by
    bytes alone, and ``used_bytes`` is what its files take.
    Counters are of blocks. ``stores`` were published. ``dropped`` were not stored for want of
    room, quota or bandwidth. ``refused`` were reserved and never written. ``corrupt`` did not
    pass their checksum. ``pinned``, ``writing`` and ``quarantined`` count the host tier's slots.
    ``read_bytes`` and ``written_bytes`` are what engines copied out of the host tier and into it,
    and what the block manager read from disk and wrote to it; ``read_s`` and ``written_s`` are what
    the copies took, added up where several went on at once, and ``read_gbps`` and ``written_gbps``
    GB/s (10^9) of that time, None where nothing was copied. ``failure`` is why a tier is switched
    off; None while it works.
    """

    name: str
    capacity_bytes: int = 0
    used_bytes: int = 0
    slots: int = 0
    used_slots: int = 0
    pinned: int = 0
    writing: int = 0
    quarantined: int = 0
    hits: int = 0
    misses: int = 0
    stores: int = 0
    evictions: int = 0
    dropped: int = 0
    refused: int = 0
    promotions: int = 0
    failed_promotions: int = 0
    corrupt: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    read_s: float = 0.0
    written_s: float = 0.0
    read_gbps: float | None = None
    written_gbps: float | None = None
    failure: str | None = None


class KvListenerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One listener's part of the host tier; a block counts for the listener that stored it.

    ``quota`` is its bound, as a share of the host tier; None where it has none of its own.
    """

    name: str
    quota: float | None = None
    used_bytes: int = 0
    slots: int = 0
    hits: int = 0
    misses: int = 0
    stores: int = 0
    evictions: int = 0
    dropped: int = 0


class KvEngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that uses the host tier: look-ups it has not released, slots it may write."""

    worker: str
    generation: int
    lookups: int = 0
    pinned: int = 0
    writing: int = 0


class KvPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """A prefix that look-ups found: ``key`` is its last block's in hexadecimal digits.

    ``blocks`` counts those known from its head to that block. ``hits`` counts look-ups, and is
    an estimate from above for a prefix that was seldom asked for.
    """

    key: str
    blocks: int
    hits: int
    pinned: bool = False


# ----------------------------------------------------------- block manager to supervisor


class BlockManagerReady(_Message, frozen=True, kw_only=True):
    """The block manager's socket is bound: engines may say hello. Repeated after SayAgain."""

    generation: int
    pid: int


class BlockManagerHeartbeat(_Message, frozen=True, kw_only=True):
    """Sent from the block manager's own loop; ``next_s`` is when the next one follows."""

    generation: int
    next_s: float = 0.5


# ----------------------------------------------------------- supervisor to block manager


class KvEngineGone(_Message, frozen=True, kw_only=True):
    """This worker generation's processes are confirmed dead: nothing that it held counts.

    What it was writing is kept from use a little longer, since a device's copies may trail.
    """

    generation: int


# ------------------- CLI to supervisor, handed on to the block manager; answers come back


class KvTierStatusRequest(_Message, frozen=True, kw_only=True):
    """Ask for the tiers below the GPU; answered by KvTierStatus with the same ``call_id``."""

    call_id: int = 0


class KvTierStatus(_Message, frozen=True, kw_only=True):
    """The tiers below the GPU; `nodeserve kv --json` prints exactly this, minus the tag.

    ``state`` is ``waiting`` until an engine fixes the shape of a block, ``adopting`` while
    engines of a predecessor are waited for, then ``serving``. ``namespace`` is in hexadecimal
    digits. ``lookup_us_per_key`` is the mean since the process started. ``refused_engines`` are
    those whose blocks do not fit, each with the reason.
    """

    call_id: int = 0
    state: str = "waiting"
    model: str = ""
    namespace: str = ""
    block_bytes: int = 0
    slot_stride: int = 0
    tiers: tuple[KvTierLoad, ...] = ()
    listeners: tuple[KvListenerLoad, ...] = ()
    engines: tuple[KvEngineLoad, ...] = ()
    refused_engines: dict[int, str] = {}
    prefixes: tuple[KvPrefix, ...] = ()
    pinned_bytes: int = 0
    lookups: int = 0
    looked_up_keys: int = 0
    lookup_us_per_key: float | None = None
    rejected_frames: int = 0
    stale_messages: int = 0
    logged: int = 0
    unlogged: int = 0


class KvClear(_Message, frozen=True, kw_only=True):
    """Forget what is in no use: of one listener in the host tier, or with None of all, disk too.

    Prefixes that the operator pinned stay. Answered by KvDone.
    """

    call_id: int = 0
    listener: str | None = None


class KvPin(_Message, frozen=True, kw_only=True):
    """Keep a prefix in the host tier until KvUnpin; answered by KvDone.

    ``key`` is the prefix's last block's, as KvPrefix shows it, or enough first digits of it.
    """

    key: str
    call_id: int = 0


class KvUnpin(_Message, frozen=True, kw_only=True):
    """Let a pinned prefix, or with None every one, be evicted again; answered by KvDone."""

    key: str | None = None
    call_id: int = 0


class KvDone(_Message, frozen=True, kw_only=True):
    """The outcome of a KvClear, KvPin or KvUnpin: ``error`` is None when it is done.

    ``exit_code`` goes with an error and is that of its kind in errors.py.
    """

    call_id: int = 0
    detail: str = ""
    error: str | None = None
    exit_code: int = 69


KvMessage = (
    BlockManagerReady
    | BlockManagerHeartbeat
    | KvEngineGone
    | KvTierStatusRequest
    | KvTierStatus
    | KvClear
    | KvPin
    | KvUnpin
    | KvDone
)
