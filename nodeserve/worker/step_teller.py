"""Tells the ledger what the engine has computed, from the thread that beats beside its loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from nodeserve.bus.ledger_client import LedgerClient, LedgerSocket
from nodeserve.clock import Clock
from nodeserve.engine.base import Engine
from nodeserve.engine.step_log import Recorded, StepRecorder
from nodeserve.wire.accounting import EngineHello, StepLog
from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import WorkerSpec


class HasRole(Protocol):
    """Who knows what the worker is used for at present; ``worker.control.Reporter`` does."""

    @property
    def role(self) -> Role:
        """The role: an operator may change it while the engine runs."""
        ...


class StepTeller:
    """Takes an engine's log about as often as its heart beats, and says it to the ledger.

    An engine that is idle says so as often, so that nobody waits for what it might have computed.
    """

    def __init__(
        self,
        client: LedgerClient,
        recorder: StepRecorder,
        reporter: HasRole,
        *,
        generation: int,
        clock: Clock,
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._reporter = reporter
        self._generation = generation
        self._clock = clock

    def tell(self) -> None:
        """Say what has come together since the last call."""
        now_s = self._clock.now_s()
        recorded = self._recorder.take(now_s)
        if recorded is not None:
            role = self._reporter.role
            self._client.say(lambda seq: _log(recorded, role, self._generation, seq))
        self._client.turn(now_s)


def _log(recorded: Recorded, role: Role, generation: int, seq: int) -> StepLog:
    return StepLog(
        generation=generation,
        seq=seq,
        role=role,
        begin_s=recorded.begin_s,
        end_s=recorded.end_s,
        batch=recorded.batch,
        runs=recorded.runs,
    )


@contextmanager
def telling(
    spec: WorkerSpec, engine: Engine, reporter: HasRole, clock: Clock
) -> Iterator[StepTeller | None]:
    """Connect an engine's log with the ledger, and say the rest of it at the end.

    None where nobody accounts for steps.

    Raises:
        ConfigError: The ledger's address cannot be used.
    """
    recorder, address = engine.recorder, spec.ledger_address
    if recorder is None or address is None:
        yield None
        return
    hello = EngineHello(
        worker=spec.name,
        generation=spec.generation,
        role=reporter.role,
        meters=spec.meters,
        work=recorder.work,
    )
    client = LedgerClient(LedgerSocket(address, spec.generation), hello)
    teller = StepTeller(client, recorder, reporter, generation=spec.generation, clock=clock)
    try:
        yield teller
        teller.tell()
    finally:
        client.close()
