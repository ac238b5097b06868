"""A reload: rehearsed in a process of its own, then carried out, or refused whole."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from nodeserve.clock import Clock
from nodeserve.config.diff import compare
from nodeserve.config.node import NodeConfig
from nodeserve.config.release import installed_vllm_version, nodeserve_version
from nodeserve.errors import ConfigError, NodeserveError, PeerError
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor import handover
from nodeserve.supervisor.children import Children, KeptForkServer
from nodeserve.supervisor.estate import Estate
from nodeserve.supervisor.handover import Handover, Rehearse
from nodeserve.supervisor.plan import DISPATCHER
from nodeserve.wire.control import CommandReply, SayAgain

_log = logging.getLogger(__name__)

REHEARSAL_S: Final = 60.0
"""How long the program on disk may take to read the configuration and look at the machine."""

SETTLE_S: Final = 30.0
"""How long a reload waits for the starts and messages under way."""

SETTLE_EVERY_S: Final = 0.01
"""How often it looks."""

Answer = Callable[[bytes, CommandReply], None]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the program on disk would do: which release it is, and with which settings it runs."""

    version: str
    config: NodeConfig
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Due:
    """A reload that can be carried out."""

    outcome: Outcome
    asked_by: bytes | None
    until_s: float


class Reload:
    """Takes wishes to reload, one at a time; None asks for a signal and gets no answer."""

    def __init__(
        self, estate: Estate, clock: Clock, *, wake: Callable[[], None], answer: Answer
    ) -> None:
        self._estate = estate
        self._clock = clock
        self._wake = wake
        self._answer = answer
        self._rehearsing: asyncio.Task[None] | None = None
        self._again = False
        self._holds_signals = False
        self._due: _Due | None = None

    @property
    def is_due(self) -> bool:
        """Whether ``carry_out`` is to be called soon."""
        return self._due is not None

    @property
    def is_imminent(self) -> bool:
        """Whether the next ``carry_out`` ends this program, unless something comes up."""
        return self._holds_signals

    @property
    def is_under_way(self) -> bool:
        """Whether one is being rehearsed or due."""
        return self._rehearsing is not None or self.is_due

    def ask(self, asked_by: bytes | None, *, dry_run: bool = False) -> None:
        """Begin a reload, or say why it cannot be now; in a dry run, say what it would do."""
        if (refusal := self._refusal()) is not None:
            self._refuse(asked_by, refusal)
        elif self._rehearsing is None and self._due is None:
            self._rehearsing = asyncio.create_task(self._rehearse(asked_by, dry_run))
        elif asked_by is None:
            self._again = True  # the settings may be newer than those being rehearsed
        else:
            self._refuse(asked_by, PeerError("another one is under way; ask again when it is done"))

    def carry_out(self) -> None:
        """Become the program on disk if that is due and nothing is on its way; else return.

        Call it when no event waits, each time a little later.
        """
        due = self._due
        if due is None:
            return
        if (refusal := self._refusal()) is not None:
            self._give_up(due, refusal)
        elif self._estate.is_settled():
            if self._holds_signals:
                self._become(due)
            else:  # one that came before is heard of in the next turn
                handover.hold_signals()
                self._holds_signals = True
            return
        elif self._clock.now_s() > due.until_s:
            text = f"processes were being started for {SETTLE_S:g} s; see `nodeserve status`"
            self._give_up(due, PeerError(text))
        self._let_signals_in()

    def _let_signals_in(self) -> None:
        if self._holds_signals:
            self._holds_signals = False
            handover.release_signals()

    def ask_what_was_missed(self) -> None:
        """Have the dispatcher repeat what it may have said while nobody listened.

        Workers are asked when they are heard again.
        """
        outbox = self._estate.outbox
        outbox.be_patient()
        dispatcher = self._estate.life.slots[DISPATCHER].generation
        with contextlib.suppress(PeerError):  # it is dead, which is heard of otherwise
            outbox.send(str(dispatcher).encode(), SayAgain())

    def close(self) -> None:
        """Stop rehearsing."""
        if self._rehearsing is not None:
            self._rehearsing.cancel()

    def _refusal(self) -> NodeserveError | None:
        phase = self._estate.life.phase
        if phase is NodePhase.READY:
            return None
        return PeerError(f"the node is {phase}; reload it while it serves")

    async def _rehearse(self, asked_by: bytes | None, dry_run: bool) -> None:  # noqa: FBT001
        estate = self._estate
        try:
            outcome = await rehearse(estate.children, estate.state(estate.config, None))
        except NodeserveError as error:
            self._refuse(asked_by, error)
        else:
            if asked_by is not None and dry_run:
                self._answer(asked_by, CommandReply(detail=plan_text(outcome)))
                return
            self._due = _Due(outcome, asked_by, self._clock.now_s() + SETTLE_S)
        finally:
            self._rehearsing = None
            self._look_again()
            self._wake()

    def _look_again(self) -> None:
        if self._again and self._due is None:
            self._again = False
            self.ask(None)

    def _become(self, due: _Due) -> None:
        _log.info("supervisor_reloading version=%s", due.outcome.version)
        try:
            opened = self._estate.gateways.open(due.outcome.config.listeners, {})
        except NodeserveError as error:
            self._let_signals_in()
            self._give_up(due, error)
            return
        self._estate.server.hang_up()
        try:
            state = self._estate.state(due.outcome.config, due.asked_by)
            handover.execute(msgspec.structs.replace(state, asked_again=self._again))
        except OSError as error:
            self._let_signals_in()
            self._estate.gateways.drop(opened)
            self._estate.server.pick_up()
            self.ask_what_was_missed()
            self._give_up(due, PeerError(f"the kernel does not execute it: {error}"))

    def _give_up(self, due: _Due, cause: NodeserveError) -> None:
        self._due = None
        self._refuse(due.asked_by, cause)
        self._look_again()

    def _refuse(self, asked_by: bytes | None, cause: NodeserveError) -> None:
        _log.error("reload_refused %s", cause)
        if asked_by is not None:
            text = f"reload refused, nothing has changed: {cause}"
            self._answer(asked_by, CommandReply(error=text, exit_code=cause.exit_code))


async def rehearse(children: Children, state: Handover) -> Outcome:
    """Let the program on disk read the configuration and our state, without touching either.

    Raises:
        ConfigError: It refuses, in its own words.
        PeerError: It does not work, or takes longer than REHEARSAL_S.
    """
    fds: list[int] = []
    try:
        fds += (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("said", "outcome"))
        fds.append(handover.pack(state))
        said_fd, outcome_fd, state_fd = fds
        variable = handover.rehearsal_variable(state_fd, outcome_fd)
        environment = os.environ | {handover.VARIABLE: variable}
        async with asyncio.timeout(REHEARSAL_S):
            argv = handover.command_line()
            code = await children.run_program(argv, environment=environment, fds=fds)
        if code != 0:
            raise _error_of(code, _read(said_fd).decode(errors="replace").strip().splitlines())
        return msgspec.msgpack.decode(_read(outcome_fd), type=Outcome)
    except TimeoutError:
        text = f"the configuration took longer than {REHEARSAL_S:g} s to read; see its files"
        raise PeerError(text) from None
    except msgspec.MsgspecError as error:
        text = f"the release on disk answers otherwise ({error}); restart the daemon"
        raise PeerError(text) from None
    except OSError as error:
        text = f"the program on disk cannot be started ({error}); install it again"
        raise PeerError(text) from error
    finally:
        for fd in fds:
            os.close(fd)


def play(errand: Rehearse, config: NodeConfig) -> int:
    """Be the rehearsal: check that ``config`` can follow on the state; return 0.

    Raises:
        NodeserveError: Why not.
    """
    state = handover.unpack(errand.state_fd)
    check_same_vllm(state.children.forkservers, installed_vllm_version())
    config, change = compare(state.config, config)
    for name, role in change.roles.items():
        state.node.slots.worker(name).require_role(role)
    steps = tuple(change.lines())
    outcome = Outcome(version=nodeserve_version(), config=config, steps=steps)
    with os.fdopen(errand.result_fd, "wb") as file:
        file.write(msgspec.msgpack.encode(outcome))
    return 0


def check_same_vllm(servers: Sequence[KeptForkServer], installed: str | None) -> None:
    """Refuse to go on where what starts next would be of another vLLM than what runs.

    Raises:
        ConfigError: With both releases.
    """
    for server in servers:
        if server.version and server.vllm_version != installed:
            text = (
                f"vLLM: the node runs {server.vllm_version or 'none'}, and {installed or 'none'} "
                "is installed; gateways and engines must be of one release: restart the daemon"
            )
            raise ConfigError(text)


def plan_text(outcome: Outcome) -> str:
    """Return what a reload does, for people."""
    if not outcome.steps:
        return "no setting has changed; nothing but the supervisor would be replaced"
    return "\n".join(["a reload would do this:", *(f"  {step}" for step in outcome.steps)])


def _error_of(code: int, said: Sequence[str]) -> NodeserveError:
    kind = ConfigError if code == ConfigError.exit_code else PeerError
    text = "\n".join(line.removeprefix("nodeserve: ").removeprefix("error: ") for line in said)
    return kind(text or f"the program on disk ended with code {code}")


def _read(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
