"""What a worker tells the supervisor."""

from typing import Protocol

from nodeserve.engine.base import Engine
from nodeserve.errors import ConfigError, InvariantError, NodeserveError
from nodeserve.wire.control import (
    ChildFailed,
    Message,
    SayAgain,
    SetWorkerRole,
    WorkerHeartbeat,
    WorkerHello,
    WorkerProgress,
    WorkerReady,
)
from nodeserve.wire.spawn import WorkerSpec


class ControlChannel(Protocol):
    """The way to the supervisor; ``bus.channel.BlockingControlClient`` is one."""

    def send(self, message: Message) -> None:
        """Send without waiting for the peer; any thread."""
        ...

    def poll(self) -> Message | None:
        """Return a message that has come; any thread."""
        ...


class Reporter:
    """Says who speaks in each message of one worker process; any thread may use it.

    Attributes:
        role: What the worker is used for, as far as it was told.
    """

    def __init__(self, channel: ControlChannel, spec: WorkerSpec) -> None:
        self.role = spec.role
        self._channel = channel
        self._spec = spec
        self._ready: WorkerReady | None = None

    def hello(self, pid: int) -> None:
        """Say that the process runs and begins to load its engine."""
        spec = self._spec
        self._channel.send(WorkerHello(name=spec.name, generation=spec.generation, pid=pid))

    def progress(self, phase: str) -> None:
        """Say what the starting engine is doing."""
        self._channel.send(WorkerProgress(generation=self._spec.generation, phase=phase))

    def ready(self, ready: WorkerReady) -> None:
        """Say that the engine takes requests."""
        self._ready = ready
        self._channel.send(ready)

    def answer(self) -> None:
        """Take what the supervisor has said since the last call: the role, what to say again."""
        while (message := self._channel.poll()) is not None:
            if isinstance(message, SetWorkerRole):
                self.role = message.role
            elif isinstance(message, SayAgain) and self._ready is not None:
                self._channel.send(self._ready)

    def heartbeat(self, engine: Engine, *, next_s: float) -> None:
        """Say how far the engine got, and when we say so again."""
        self._channel.send(
            WorkerHeartbeat(
                generation=self._spec.generation,
                steps=engine.steps,
                num_requests=engine.num_requests,
                next_s=next_s,
            )
        )

    def failed(self, error: BaseException) -> None:
        """Say why the process ends."""
        self._channel.send(
            ChildFailed(
                generation=self._spec.generation,
                cause=cause_of(error),
                retryable=not isinstance(error, ConfigError),
            )
        )


def cause_of(error: BaseException) -> str:
    """Return an error as one sentence on one line, for an operator.

    Ours say it themselves. Of others the type and the first line are kept; the log has the rest.
    """
    first_line = next(iter(str(error).splitlines()), "")
    if isinstance(error, NodeserveError) and not isinstance(error, InvariantError):
        return first_line
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
