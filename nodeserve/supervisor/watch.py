"""Looks at every process of the node several times a second and reports those that are stuck."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from nodeserve.clock import Clock
from nodeserve.config.node import NodeConfig
from nodeserve.ids import Generation
from nodeserve.lifecycle.liveness import Held, Liveness
from nodeserve.lifecycle.messages import Event, ProcessHeld, ProcessSick
from nodeserve.supervisor.children import Child
from nodeserve.supervisor.proc import ProcessView
from nodeserve.wire import control
from nodeserve.wire.device_control import MonitorHeartbeat
from nodeserve.wire.kv_control import BlockManagerHeartbeat
from nodeserve.wire.ledger_control import LedgerHeartbeat

_LOG: Final = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.2
"""Five looks at ten processes cost 0.1 % of a core."""

LOOKS_BETWEEN_COUNTS: Final = 10
"""How often a worker's own processes, the ranks of its engine, are looked for."""


class Watch:
    """The eyes of ``Liveness``: /proc for what the kernel shows, heartbeats for progress."""

    def __init__(self, config: NodeConfig, clock: Clock, report: Callable[[Event], None]) -> None:
        self._clock = clock
        self._report = report
        self._liveness = Liveness(config.liveness)
        self._has_gpu = {worker.name: bool(worker.gpu_uuids) for worker in config.workers}
        self._children: dict[Generation, Child] = {}
        self._views: dict[Generation, ProcessView] = {}
        self._num_looks = 0

    def born(self, child: Child) -> None:
        """Begin to watch a process."""
        on_cpu = not self._has_gpu.get(child.name, True)
        self._children[child.generation] = child
        self._views[child.generation] = ProcessView(child.pid)
        self._liveness.born(child.generation, computes_on_cpu=on_cpu)

    def killed(self, generation: Generation) -> None:
        """Take note that a process was sent SIGKILL."""
        self._liveness.killed(generation)

    def ending(self, generation: Generation) -> None:
        """Take note that a process was told to end, for which it has its own time."""
        self._liveness.ending(generation)

    def gone(self, generation: Generation) -> None:
        """Stop watching a process that has ended."""
        self._children.pop(generation, None)
        if (view := self._views.pop(generation, None)) is not None:
            view.close()
        self._liveness.gone(generation)

    def busy_s(self, generation: Generation) -> float:
        """Return for how long a process has computed, or waited for a CPU, since it was born."""
        return self._liveness.busy_s(generation)

    def heard(self, message: control.Message) -> None:
        """Take a heartbeat; anything else says nothing of progress."""
        match message:
            case control.WorkerHeartbeat(steps=steps, num_requests=num_requests):
                generation = Generation(message.generation)
                self._liveness.beat(
                    generation, next_s=message.next_s, steps=steps, num_requests=num_requests
                )
            case (
                control.DispatcherHeartbeat()
                | BlockManagerHeartbeat()
                | LedgerHeartbeat()
                | MonitorHeartbeat()
            ):
                self._liveness.beat(Generation(message.generation), next_s=message.next_s)
            case _:
                pass

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                self.look()
            except Exception:  # noqa: BLE001  who cannot see must not stop the node
                _LOG.exception("look_failed")
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Look at every process once and report who is stuck."""
        if self._num_looks % LOOKS_BETWEEN_COUNTS == 0:
            self._count_descendants()
        self._num_looks += 1
        seen = {
            generation: view.look(closely=self._liveness.is_quiet(generation))
            for generation, view in self._views.items()
        }
        for found in self._liveness.look(seen, now_s=self._clock.now_s()):
            name = self._children[found.generation].name
            if isinstance(found, Held):
                _LOG.error("process_held name=%s %s", name, found.cause)
                self._report(ProcessHeld(found.generation, found.cause))
            else:
                _LOG.warning("process_stuck name=%s %s", name, found.cause)
                self._report(ProcessSick(found.generation, found.cause))

    def _count_descendants(self) -> None:
        for generation, child in self._children.items():
            if child.name in self._has_gpu:  # gateways and fork servers share no fate with theirs
                self._views[generation].find_descendants()
