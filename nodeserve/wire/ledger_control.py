"""What the supervisor and the ledger say to each other.

These are control messages like those of ``wire.control``, which knows them by its union.
The ledger's identity on the control channel is its generation in decimal digits.
"""

import msgspec


class _Message(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """A control message."""


# ------------------------------------------------------------------ ledger to supervisor


class LedgerReady(_Message, frozen=True, kw_only=True):
    """The ledger's socket is bound and its file is open. Repeated after SayAgain."""

    generation: int
    pid: int


class LedgerHeartbeat(_Message, frozen=True, kw_only=True):
    """Sent from the ledger's own loop; ``next_s`` is when the next one follows.

    ``problem`` is why nothing can be booked at present, in one sentence; None while it can.
    ``waiting`` readings of meters wait to be booked, and ``booked_windows`` and ``late_s`` count
    since the process started: windows, and seconds of steps whose log came too late.
    """

    generation: int
    next_s: float = 0.5
    problem: str | None = None
    waiting: int = 0
    booked_windows: int = 0
    late_s: float = 0.0


# ------------------------------------------------------------------ supervisor to ledger


class LedgerEngineGone(_Message, frozen=True, kw_only=True):
    """This worker generation's processes have died: no step log of it is waited for any more."""

    generation: int


LedgerMessage = LedgerReady | LedgerHeartbeat | LedgerEngineGone
