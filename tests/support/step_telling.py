"""A worker's heart without its supervisor: it tells the ledger what the engine computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from nodeserve.bus.sockets import bind, open_socket
from nodeserve.clock import MonotonicClock
from nodeserve.engine.base import Engine
from nodeserve.wire.accounting import EngineHello, StepLog, decode_to_ledger
from nodeserve.wire.control import Message
from nodeserve.wire.spawn import WorkerSpec
from nodeserve.worker.control import Reporter
from nodeserve.worker.heartbeat import Heartbeat
from nodeserve.worker.step_teller import telling

WITHIN_MS = 10_000


class _Nobody:
    def send(self, message: Message) -> None:
        pass

    def poll(self) -> Message | None:
        return None


@contextmanager
def accounted(engine: Engine, spec: WorkerSpec) -> Iterator[None]:
    """Tell the ledger of ``spec``, if there is one, what ``engine`` computes meanwhile."""
    reporter = Reporter(_Nobody(), spec)
    with telling(spec, engine, reporter, MonotonicClock()) as teller:
        if teller is None:
            yield
            return
        with Heartbeat(reporter, engine, beside=teller.tell):
            yield


class HeardLedger:
    """Binds the ledger's address and takes what it is told; acknowledges nothing."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = open_socket(self._context, zmq.ROUTER)
        bind(self._socket, address)
        self.hellos: dict[int, EngineHello] = {}
        self.logs: dict[int, list[StepLog]] = {}

    def hear(self) -> StepLog | EngineHello:
        """Wait for one message, and keep it once."""
        assert self._socket.poll(WITHIN_MS), "nothing is told to the ledger"
        message = decode_to_ledger(self._socket.recv_multipart()[1])
        assert isinstance(message, StepLog | EngineHello)
        if isinstance(message, EngineHello):
            self.hellos[message.generation] = message
        elif message.seq > len(self.logs.setdefault(message.generation, [])):
            self.logs[message.generation].append(message)
        return message

    def computed(self, generation: int, leg_id: str) -> list[tuple[int, int]]:
        """Return the tokens and the context of each step of a leg, as far as was heard."""
        steps = []
        for log in self.logs.get(generation, ()):
            batch = {m.leg_id: (m.tokens, m.context) for m in log.batch}
            for run in log.runs:
                for left in run.left:
                    batch.pop(left)
                batch.update({m.leg_id: (m.tokens, m.context) for m in run.joined})
                steps += [(m.tokens, m.context) for m in run.once if m.leg_id == leg_id]
                for _ in range(run.num_steps):
                    if leg_id in batch:
                        steps.append(batch[leg_id])
                    batch = {leg: (n, context + n) for leg, (n, context) in batch.items()}
        return steps

    def close(self) -> None:
        self._context.destroy(linger=0)
