"""A simulated process: it lives, can be held up, and dies of signals or by itself."""

from typing import TYPE_CHECKING

from nodeserve.ids import Generation
from nodeserve.wire.kv_control import BlockManagerReady

if TYPE_CHECKING:
    from nodeserve.sim.node import SimNode

KILLED = 137


class Process:
    """One incarnation.

    Attributes:
        alive: Whether it has not ended.
        deaf_s: How long it takes to die of a signal.
        delay_s: How much longer its messages are under way.
        num_repeats: How many of its next messages come twice.
        num_drops: How many of its next messages, of those that may, get lost.
    """

    def __init__(self, node: "SimNode", name: str, generation: Generation) -> None:
        self.node = node
        self.name = name
        self.generation = generation
        self.alive = True
        self.deaf_s = 0.0
        self.delay_s = 0.0
        self.num_repeats = 0
        self.num_drops = 0
        self.said_s = 0.0

    def __str__(self) -> str:
        return f"{self.name} (generation {self.generation})"

    def under_way_s(self) -> float:
        """Return how long its next message takes."""
        return self.node.draw.uniform(0.0001, 0.002) + self.delay_s

    def times(self, *, may_be_lost: bool = False) -> int:
        """Return how often its next message comes: once, if nothing is wrong."""
        if may_be_lost and self.num_drops:
            self.num_drops -= 1
            return 0
        if self.num_repeats:
            self.num_repeats -= 1
            return 2
        return 1

    def terminate(self) -> None:
        """Take SIGTERM."""
        self._die_after(self.node.draw.uniform(0.001, 0.03) + self.deaf_s, 0, "ended as asked")

    def kill(self) -> None:
        """Take SIGKILL."""
        self._die_after(self.node.draw.uniform(0.0, 0.001) + self.deaf_s, KILLED, "was killed")

    def _die_after(self, delay_s: float, exit_code: int, cause: str) -> None:
        self.node.queue.after(delay_s, lambda: self.exit(exit_code, cause))

    def exit(self, exit_code: int, cause: str) -> None:
        """End now; the supervisor hears of it a moment later."""
        if self.alive:
            self.alive = False
            self.node.story.tell("{} {}", self, cause)
            self.ended()
            self.node.supervisor.process_ended(self, exit_code, cause)

    def ended(self) -> None:
        """Let go of what others would notice."""


class SimBlockManager(Process):
    """A block manager that nobody asks anything: it comes, and it goes."""

    def __init__(self, node: "SimNode", name: str, generation: Generation) -> None:
        super().__init__(node, name, generation)
        node.queue.after(node.draw.uniform(0.001, 0.02), self._say_ready)

    def _say_ready(self) -> None:
        if self.alive:
            ready = BlockManagerReady(generation=self.generation, pid=1)
            self.node.tell_supervisor(self, ready)
