"""What engines say of their queues: to the router at once, to gateways now and then."""

from collections.abc import Callable
from typing import Any, Final

from nodeserve.dispatcher.desk import RequestDesk
from nodeserve.dispatcher.gateway_link import GatewayLink
from nodeserve.dispatcher.metrics import NodeStats
from nodeserve.dispatcher.worker_link import Worker
from nodeserve.router.messages import LoadReported

STATS_EVERY_S: Final = 0.05
"""How often a gateway that gets outputs is sent statistics. What they count is added up."""

Push = Callable[[GatewayLink], None]


class Loads:
    """Takes every step's statistics and passes on what is new.

    Attributes:
        stats: The node's, from those of all attached engines.
    """

    def __init__(self, desk: RequestDesk, gateways: dict[int, GatewayLink], push: Push) -> None:
        self.stats = NodeStats()
        self._desk = desk
        self._gateways = gateways
        self._push = push
        self._untold: set[Worker] = set()
        self._due_s = 0.0

    def take(self, worker: Worker, said: bytes) -> bool:
        """Take a step's statistics; most repeat the last ones and are not even read.

        Returns:
            Whether they cannot wait: see ``NodeStats.take``.
        """
        if said == worker.gauges.said:
            return False
        urgent = False
        try:
            urgent = self.stats.take(worker.gauges, said, worker.unstarted)
        except ValueError:
            self._desk.traces.counters.rejected_frames += 1
        if worker.gauges.waiting or worker.told_waiting:
            self._tell_load(worker)
        else:
            self._untold.add(worker)
        return urgent

    def show(self, now_s: float, *, urgent: bool) -> None:
        """Let each gateway's next message carry statistics, if it is time for new ones."""
        if self.stats.changed and (urgent or now_s >= self._due_s):
            self.stats.changed = False
            self._due_s = now_s + STATS_EVERY_S
            for gateway in self._gateways.values():
                gateway.shows_old_gauges = True

    def report(self, gateway: GatewayLink) -> dict[str, Any] | None:
        """Return the statistics for a gateway's next message, None for none."""
        if not gateway.shows_old_gauges:
            return None
        gateway.shows_old_gauges = False
        return self.stats.report()

    def catch_up(self) -> None:
        """Say what had time: loads to the router, statistics to gateways that heard nothing.

        Call it every tenth of a second, not from within a turn.
        """
        for worker in tuple(self._untold):
            self._tell_load(worker)
        codecs = self._desk.codecs
        now_s = self._desk.clock.now_s()
        self.show(now_s, urgent=True)
        for gateway in list(self._gateways.values()):
            if codecs and gateway.shows_old_gauges and gateway.serving and not gateway.congested:
                gateway.post(codecs.outputs.message([], self.report(gateway), now_s), [])
                self._push(gateway)

    def _tell_load(self, worker: Worker) -> None:
        gauges = worker.gauges
        worker.told_waiting = gauges.waiting > 0
        self._untold.discard(worker)
        self._desk.tell(
            LoadReported(worker.generation, gauges.running, gauges.waiting, gauges.kv_usage)
        )
