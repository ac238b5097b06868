"""The order in which the node's processes end, and how long each wait may take."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nodeserve.errors import CapacityError, ConfigError, InvariantError, PeerError
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.slot import Slot
from nodeserve.wire.kinds import ProcessKind

# Nobody outlives the process it talks to.
STOP_ORDER: Final = (
    frozenset({ProcessKind.GATEWAY}),
    frozenset({ProcessKind.WORKER, ProcessKind.DISPATCHER}),
    frozenset({ProcessKind.BLOCK_MANAGER, ProcessKind.MONITOR}),
    frozenset({ProcessKind.LEDGER}),
    frozenset({ProcessKind.FORKSERVER}),
)

REASONED_EXITS: Final = frozenset(
    error.exit_code for error in (CapacityError, ConfigError, InvariantError, PeerError)
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the node waits: for requests to finish, and for processes to end by themselves."""

    drain_s: float = 60.0
    stop_s: float = 10.0


SETTLE_S: Final = 2.0
"""How long what gateways had accepted may take to reach the dispatcher, tokenising included.

Only then does an empty dispatcher mean that there is nothing more to come.
"""


def next_to_stop(slots: Iterable[Slot]) -> list[Slot]:
    """Return the slots of the first kinds in STOP_ORDER that are not over; empty at the end."""
    over = (Phase.DOWN, Phase.FAILED, Phase.BACKOFF)
    alive = [slot for slot in slots if slot.life.phase not in over]
    for kinds in STOP_ORDER:
        if left := [slot for slot in alive if slot.kind in kinds]:
            return left
    return []


def daemon_exit_code(exit_code: int) -> int:
    """Return with what the daemon ends when a process whose exit code this is could not start.

    A process that ends with a code of its own, or by a signal, has not said what is to be done.
    """
    return exit_code if exit_code in REASONED_EXITS else PeerError.exit_code
