"""What a worker process needs of an engine, whichever engine it is."""

from collections.abc import Callable
from typing import Protocol

from nodeserve.engine.step_log import StepRecorder
from nodeserve.wire.control import WorkerReady
from nodeserve.wire.spawn import WorkerSpec


class Engine(Protocol):
    """One engine of one worker process: it loads, speaks EngineCore on the wire, and stops.

    ``start`` then ``run`` are called once each, on the main thread. ``steps`` and
    ``num_requests`` are read at any time by the heartbeat thread; a value one step old is fine.
    It also takes what has been recorded.
    """

    @property
    def recorder(self) -> StepRecorder | None:
        """What it computes, from ``start`` on; None where nobody accounts for it."""
        ...

    @property
    def steps(self) -> int:
        """Engine steps so far; it advances while ``num_requests`` is above zero."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests the engine still has work for."""
        ...

    def start(self) -> WorkerReady:
        """Load everything, connect to the dispatcher and return what it needs to know.

        Raises:
            ConfigError: A setting can never work with this engine.
            CapacityError: The device has no room at present.
        """
        ...

    def run(self) -> None:
        """Serve until ``stop`` is called.

        Raises:
            PeerError: The engine died and serves nobody any more.
        """
        ...

    def stop(self) -> None:
        """Make ``run`` return soon, dropping what runs. Any thread; also from a signal handler."""
        ...


Progress = Callable[[str], None]
"""Takes one short phrase about what a starting engine is doing, for people."""

EngineFactory = Callable[[WorkerSpec, Progress], Engine]
