"""What the monitor, the engines and the dispatcher tell the ledger, and what it answers.

Every message is a frozen msgspec Struct, tagged by its name, as msgpack in one ZeroMQ frame. The
ledger binds a ROUTER; everybody else connects a DEALER whose identity is its generation in decimal
digits. Who sends step logs or notes of requests numbers its messages from 1, keeps them until they
are acknowledged, and says them again after ``LedgerHello``: the ledger drops what it has, so that
everything is booked once. Nobody waits for the ledger: one that is gone costs accuracy (energy is
booked as ``#unattributed``, never to a wrong request), not service.

A *meter* counts the energy of one device, or of one CPU package. Times are seconds on the
machine's monotonic clock, which all its processes share, unless the name ends ``_unix_s``.
Energy is in integer mJ, power in mW.
"""

from typing import Final

import msgspec

from nodeserve.wire.codec import GARBAGE, encode, refuse
from nodeserve.wire.kinds import Role

MAX_UNACKNOWLEDGED: Final = 1024
"""Messages that a sender keeps; the oldest go first, and their work is booked to nobody."""


class _Message(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """A message about what was used."""


# ------------------------------------------------------------------------ monitor to ledger


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """Something whose energy is counted.

    ``meter`` is the GPU's UUID, or ``cpu-package-0``. ``kind`` is ``gpu``, ``cpu`` or
    ``simulated``. ``source`` says where the figures come from: ``nvml-counter``,
    ``nvml-power`` (integrated: an estimate), ``powercap`` or ``simulated``.
    ``max_power_mw`` bounds what can be plausible; None where nothing says so.
    ``wraps_at_mj`` is where the counter begins anew, which is no reset.
    """

    meter: str
    kind: str
    name: str
    source: str
    index: int = 0
    max_power_mw: int | None = None
    wraps_at_mj: int | None = None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One meter at one time; None is what cannot be read, never zero.

    ``idle_mw`` is what the device draws with nothing to do at its present clocks, as the monitor
    has seen it; None before it was seen.
    """

    meter: str
    counter_mj: int | None
    power_mw: int | None = None
    idle_mw: int | None = None


class MetersHello(_Message, frozen=True, kw_only=True):
    """Which meters there are from now on; said first, and again when one comes or goes."""

    generation: int
    meters: tuple[Meter, ...]


class MetersRead(_Message, frozen=True, kw_only=True):
    """All meters at one time: about every second, and at full hours. It ends their windows."""

    generation: int
    at_s: float
    at_unix_s: float
    readings: tuple[Reading, ...]


# ------------------------------------------------------------------------ engines to ledger


class WorkShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a token costs the model on one GPU of the group, for weights by roofline.

    ``token_flops`` are of one token's matrix products, ``pair_flops`` of one query-key pair over
    all layers. ``kv_bytes`` is one token's KV, ``weight_bytes`` what a step reads of weights.
    ``flops_per_s`` and ``bytes_per_s`` are the device's peaks. Ratios alone matter.
    """

    token_flops: float
    pair_flops: float
    kv_bytes: float
    weight_bytes: float
    flops_per_s: float
    bytes_per_s: float


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A leg in a step: it computes ``tokens`` tokens behind ``context`` tokens of context."""

    leg_id: str
    tokens: int
    context: int


class StepRun(msgspec.Struct, frozen=True, array_like=True):
    """Like steps in a row: ``num_steps`` of them, which ended at ``end_s``.

    Before the first, ``left`` leave the batch and ``joined`` enter it. Every member of the batch
    computes its tokens in every step, and its context grows by as many. ``once`` compute in
    these steps beside the batch and are no part of it: chunks of prompts, of a run of one step.
    ``busy_s`` is how long the steps took together, without pauses in between.
    """

    end_s: float
    num_steps: int
    busy_s: float
    joined: tuple[Member, ...] = ()
    left: tuple[str, ...] = ()
    once: tuple[Member, ...] = ()


class EngineHello(_Message, frozen=True, kw_only=True):
    """An engine that will send step logs; said first, and again when asked.

    ``meters`` are those of its GPUs; empty where it runs on CPUs, whose meters nobody owns alone.
    """

    worker: str
    generation: int
    role: Role
    meters: tuple[str, ...]
    work: WorkShape


class StepLog(_Message, frozen=True, kw_only=True):
    """All that an engine has computed from ``begin_s`` to ``end_s``, which join without gaps.

    Each log stands for itself: ``batch`` is who is in the batch at its beginning, with the
    context then. ``role`` is what the worker is used for. A log without runs says that the
    engine was idle.
    """

    generation: int
    seq: int
    role: Role
    begin_s: float
    end_s: float
    batch: tuple[Member, ...] = ()
    runs: tuple[StepRun, ...] = ()


# --------------------------------------------------------------------- dispatcher to ledger


class StartedRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request whose first leg has begun; its energy is provisional until it has ended.

    ``request_id`` is the dispatcher's own; the ids of its legs are ``<request_id>.<n>``.
    ``wire_id`` is the gateway's: the client's id, perhaps with a prefix or suffix.
    """

    request_id: str
    wire_id: str
    listener: str
    model: str
    arrived_unix_s: float


class EndedLeg(msgspec.Struct, frozen=True, array_like=True):
    """One leg of a request. ``is_scrap``: what it computed was thrown away or computed again."""

    leg_id: str
    worker: str
    role: str
    is_scrap: bool


class EndedRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one request, whether or not its start was heard of.

    ``outcome`` is a name of vLLM's FinishReason: ``stop``, ``length``, ``abort``, ``error``.
    ``prompt_tokens`` include ``cached_tokens``. ``output_tokens`` are what the client was sent.
    ``scrap_tokens`` were computed, but for nobody: of failed and aborted requests all, of
    resumed ones what was computed again.
    """

    request_id: str
    wire_id: str
    listener: str
    model: str
    outcome: str
    arrived_unix_s: float
    ended_unix_s: float
    prompt_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0
    scrap_tokens: int = 0
    resumed: int = 0
    legs: tuple[EndedLeg, ...] = ()


class RequestsNoted(_Message, frozen=True, kw_only=True):
    """The requests that have started, and those that have ended, since the last such message."""

    generation: int
    seq: int
    started: tuple[StartedRequest, ...] = ()
    ended: tuple[EndedRequest, ...] = ()


# ---------------------------------------------------------------------------- ledger to all


class LedgerHello(_Message, frozen=True, kw_only=True):
    """The ledger has begun anew, or does not know who speaks: say hello, and what it lacks."""

    generation: int


class LedgerAck(_Message, frozen=True, kw_only=True):
    """Everything up to ``seq`` is booked, or will never be."""

    seq: int


class ListenerUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a listener has used in the current period of its budget."""

    listener: str
    energy_mj: int | None
    period_ends_unix_s: float


class UseReported(_Message, frozen=True, kw_only=True):
    """To the dispatcher, about every second, for listeners with a budget of energy."""

    uses: tuple[ListenerUse, ...]


ToLedger = MetersHello | MetersRead | EngineHello | StepLog | RequestsNoted
FromLedger = LedgerHello | LedgerAck | UseReported

_TO_LEDGER: Final[msgspec.msgpack.Decoder[ToLedger]] = msgspec.msgpack.Decoder(ToLedger)
_FROM_LEDGER: Final[msgspec.msgpack.Decoder[FromLedger]] = msgspec.msgpack.Decoder(FromLedger)


def encode_message(message: ToLedger | FromLedger) -> bytes:
    """Return the frame that carries ``message``."""
    return encode(message)


def decode_to_ledger(frame: bytes) -> ToLedger:
    """Return the message in ``frame``; raises ValueError for anything else."""
    try:
        return _TO_LEDGER.decode(frame)
    except GARBAGE as error:
        refuse("message to the ledger", frame, error)


def decode_from_ledger(frame: bytes) -> FromLedger:
    """Return the message in ``frame``; raises ValueError for anything else."""
    try:
        return _FROM_LEDGER.decode(frame)
    except GARBAGE as error:
        refuse("message of the ledger", frame, error)
