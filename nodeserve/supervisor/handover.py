"""What a supervisor leaves to the program that takes its place in the same process.

The state lies in a memfd, as msgpack; it and the sockets it names are inherited by their
numbers. One environment variable says so, and is removed as soon as it is read.
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Final, NoReturn

import msgspec

from nodeserve.config.node import NodeConfig
from nodeserve.errors import PeerError
from nodeserve.lifecycle.rollout import Rollout
from nodeserve.lifecycle.state import NodeState
from nodeserve.supervisor.children import Kept
from nodeserve.supervisor.gateways import KeptListener
from nodeserve.supervisor.operator_desk import KeptPromise
from nodeserve.supervisor.tier_memory import KeptTierMemory
from nodeserve.wire.control import ChildFailed

VARIABLE: Final = "NODESERVE_HANDOVER"

HELD_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
"""They wait while no program of this process can take them; unheld, SIGTERM would kill it."""

_REHEARSE: Final = "rehearse"
_TAKE_OVER: Final = "take-over"


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """All that a supervisor knows. Travels between releases: new fields have defaults.

    Attributes:
        config: What the node runs with.
        asked_by: Whose command this answers; None for a signal.
        started_s: When the node was started.
        run_id: Which run of the node this is; empty of releases that had none.
        num_reloads: How often the supervisor has been replaced.
        before: What the node ran with until now; None where that does not change.
        rollout: What is still to be done for the configuration before.
        tier: The host tier's memory; None where there is no such tier.
        asked_again: Whether a signal asked for the next reload while this one was under way.
    """

    config: NodeConfig
    node: NodeState
    children: Kept
    listeners: list[KeptListener]
    control_fd: int
    lock_fd: int
    started_s: float
    causes: list[ChildFailed] = []
    promises: list[KeptPromise] = []
    asked_by: bytes | None = None
    run_id: str = ""
    num_reloads: int = 0
    asked_again: bool = False
    before: NodeConfig | None = None
    rollout: Rollout = msgspec.field(default_factory=Rollout)
    tier: KeptTierMemory | None = None

    def fds(self) -> Iterator[int]:
        """Return every fd that must stay open."""
        yield from (self.control_fd, self.lock_fd)
        for listener in self.listeners:
            yield from listener.fds
        for server in self.children.forkservers:
            yield server.fd
        if self.tier is not None:
            yield from self.tier.fds


@dataclass(frozen=True, slots=True)
class Rehearse:
    """Find out whether the state can be taken over, and write what would change."""

    state_fd: int
    result_fd: int


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Go on with the state: this process is the supervisor."""

    state_fd: int


def errand(environ: MutableMapping[str, str]) -> Rehearse | TakeOver | None:
    """Return what this program was executed for; None when it was simply started."""
    what, *fds = environ.pop(VARIABLE, "").split() or [""]
    match what, [int(fd) for fd in fds]:
        case "rehearse", [state_fd, result_fd]:
            return Rehearse(state_fd, result_fd)
        case "take-over", [state_fd]:
            return TakeOver(state_fd)
        case _:
            return None


def pack(state: msgspec.Struct) -> int:
    """Return a new memfd that holds ``state``; children inherit it only when told so."""
    fd = os.memfd_create("nodeserve-handover", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(msgspec.msgpack.encode(state))
    return fd


def unpack(fd: int) -> Handover:
    """Return the state in a memfd, however often it was read before.

    Raises:
        PeerError: It is not one that this release understands.
    """
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    try:
        return msgspec.msgpack.decode(data, type=Handover)
    except (msgspec.MsgspecError, ValueError) as error:
        text = f"supervisor: its release keeps its state otherwise ({error}); restart the daemon"
        raise PeerError(text) from error


def rehearsal_variable(state_fd: int, result_fd: int) -> str:
    """Return what VARIABLE is in a rehearsal."""
    return f"{_REHEARSE} {state_fd} {result_fd}"


def command_line() -> list[str]:
    """Return what started this program; executed again, it is the same with newer code."""
    return [sys.executable, *sys.orig_argv[1:]]


def execute(state: Handover) -> NoReturn:
    """Become the program on disk, which goes on with ``state``; with signals held.

    On the main thread: the kernel ends our children with the thread that is their parent.

    Raises:
        OSError: The kernel refuses; nothing has changed.
    """
    state_fd = pack(state)
    inherited = [state_fd, *state.fds()]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        _inherit(inherited, inheritable=True)
        environment = os.environ | {VARIABLE: f"{_TAKE_OVER} {state_fd}"}
        os.execve(sys.executable, command_line(), environment)  # noqa: S606  no shell
    finally:
        _inherit(inherited, inheritable=False)
        os.close(state_fd)


def taken_over(state: Handover) -> None:
    """Keep the inherited fds from being inherited further."""
    _inherit(state.fds(), inheritable=False)


def hold_signals() -> None:
    """Let signals wait for ``release_signals``, in this program or the next."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)


def release_signals() -> None:
    """Take the signals that came meanwhile; call it when they are handled."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


def _inherit(fds: Iterable[int], *, inheritable: bool) -> None:
    for fd in fds:
        os.set_inheritable(fd, inheritable)
