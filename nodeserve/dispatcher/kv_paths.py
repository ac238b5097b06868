"""How fast KV comes to workers, from others and the host tier: asked once, one at a time.

A destination measures between two of its steps, so it is asked only while it and the source have
nothing to do; requests that arrive meanwhile wait for that one measurement. A path that cannot
be read, or is slower than the operator allows, is not used: its prefill worker serves whole
requests from then on. A slow path is never silent. What comes from the host tier is only told.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from nodeserve.dispatcher.utilities import Then
from nodeserve.dispatcher.worker_link import Worker, WorkerTable
from nodeserve.ids import Generation
from nodeserve.router.messages import Event, RoleChanged
from nodeserve.wire.kinds import PROBE, TIER_PROBE, Role
from nodeserve.wire.status import KvPath

_LOG: Final = logging.getLogger(__name__)

POOLS_METHOD: Final = "nodeserve_pools"
PROBE_METHOD: Final = "nodeserve_probe"
PROBE_TIER_METHOD: Final = "nodeserve_probe_tier"

HOST: Final = "host"
"""The host tier, as a source."""

USUAL_GBPS: Final[Mapping[str, float]] = {
    "cuda_ipc": 20.0,
    "cuda_vmm": 20.0,
    "shared_memory": 0.2,
    "pinned_host": 8.0,
    "pageable_host": 8.0,
    "host": 0.2,
}
"""What a path of each transport is worth at least: slower ones are warned of. Peers over NVLink
do 300 and more, over PCIe 4 and 5 20 to 50, as pinned host memory does; host memory among CPUs 1
to 10."""

_HOST: Final = Generation(0)
"""In the place of a worker's generation, which begin at 1."""

_Pair = tuple[Generation, Generation]


class Desk(Protocol):
    """What is needed of the dispatcher: its request desk is one."""

    workers: WorkerTable

    def tell(self, event: Event) -> None:
        """Hand an event to the router."""
        ...

    def ask_worker(self, worker: Worker, method: str, args: list[Any], then: Then) -> None:
        """Call a utility; ``then`` is called once, also when the worker is lost."""
        ...


class _Figures(msgspec.Struct, frozen=True):
    transport: str
    latency_us: float
    gbps_64kb: float
    gbps_256kb: float
    gbps_64mb: float


class KvPaths:
    """The paths among the attached workers, and which of them is being measured.

    ``min_gbps``, below which a path is refused, may be set at any time: it counts from then on.
    """

    def __init__(self, desk: Desk, min_gbps: float | None) -> None:
        """Measure among the workers of ``desk``, which others attach and retire.

        A path below ``min_gbps`` is refused; None refuses none that works.
        """
        self._desk = desk
        self._attached = desk.workers.attached
        self.min_gbps = min_gbps
        self._pools: dict[Generation, Any] = {}
        self._found: dict[_Pair, KvPath] = {}
        self._is_busy = False

    def found(self) -> tuple[KvPath, ...]:
        """Return what was found of the workers that are there now."""
        return tuple(
            path
            for (source, destination), path in sorted(self._found.items())
            if (source == _HOST or source in self._attached) and destination in self._attached
        )

    def look(self) -> None:
        """Measure the next path whose ends are idle; call it now and then."""
        if self._is_busy:
            return
        for source in self._with_role(Role.PREFILL):
            for destination in self._with_role(Role.DECODE):
                pair = (source.generation, destination.generation)
                if pair not in self._found and _is_idle(source) and _is_idle(destination):
                    self._is_busy = True
                    self._begin(source, destination)
                    return
        for worker in self._attached.values():
            if (_HOST, worker.generation) not in self._found and _has_tier(worker):
                self._is_busy = True
                self._probe_tier(worker)
                return

    def forget(self, generation: Generation) -> None:
        """Forget the paths of a worker that is gone or has another role by now."""
        self._pools.pop(generation, None)
        for pair in [pair for pair in self._found if generation in pair]:
            del self._found[pair]

    def _with_role(self, role: Role) -> list[Worker]:
        return [
            worker
            for worker in self._attached.values()
            if worker.role is role and PROBE in worker.attached.ready.features
        ]

    def _begin(self, source: Worker, destination: Worker) -> None:
        if source.generation in self._pools:
            self._probe(source, destination)
            return

        def take_pools(failure: str | None, pools: Any) -> None:
            if failure is not None:
                path = _failed(source.name, destination.name, "unknown", failure)
                self._end(source, destination, path)
            elif self._still_there(source, destination):
                self._pools[source.generation] = pools
                self._probe(source, destination)

        self._desk.ask_worker(source, POOLS_METHOD, [], take_pools)

    def _probe(self, source: Worker, destination: Worker) -> None:
        def take_figures(failure: str | None, result: Any) -> None:
            if self._still_there(source, destination):
                path = self._judged(source.name, destination.name, failure, result)
                self._end(source, destination, path)

        self._desk.ask_worker(
            destination, PROBE_METHOD, [self._pools[source.generation]], take_figures
        )

    def _probe_tier(self, worker: Worker) -> None:
        def take_figures(failure: str | None, result: Any) -> None:
            if self._still_there(worker):
                path = self._judged(HOST, worker.name, failure, result)
                self._is_busy = False
                self._found[_HOST, worker.generation] = path
                _tell(path)
                self.look()

        self._desk.ask_worker(worker, PROBE_TIER_METHOD, [], take_figures)

    def _still_there(self, *workers: Worker) -> bool:
        if all(worker.generation in self._attached for worker in workers):
            return True
        self._is_busy = False  # a successor's path is another one
        return False

    def _end(self, source: Worker, destination: Worker, path: KvPath) -> None:
        self._is_busy = False
        if source.generation in self._attached and destination.generation in self._attached:
            self._found[source.generation, destination.generation] = path
            _tell(path)
            if path.verdict == "refused":
                # It hands nothing over from now on.
                source.role = Role.AGGREGATED
                self._desk.tell(RoleChanged(source.generation, source.role))
        self.look()

    def _judged(self, source: str, destination: str, failure: str | None, result: Any) -> KvPath:
        is_host = source == HOST
        if failure is not None:  # perhaps it was only late: no answer is no refusal
            return _failed(source, destination, "unknown", failure)
        if isinstance(result, dict) and "error" in result:
            verdict = "unknown" if is_host else "refused"
            return _failed(source, destination, verdict, str(result["error"]))
        try:
            figures = msgspec.convert(result, _Figures)
        except msgspec.ValidationError as error:
            text = f"the answer makes no sense: {error}"
            return _failed(source, destination, "unknown", text)
        usual = USUAL_GBPS.get(figures.transport, 0.0)
        least = None if is_host else self.min_gbps
        refuses = least is not None and figures.gbps_64mb < least
        verdict = "refused" if refuses else "slow" if figures.gbps_64mb < usual else "good"
        return KvPath(
            source=source,
            destination=destination,
            verdict=verdict,
            floor_gbps=usual if least is None else least,
            **msgspec.structs.asdict(figures),
        )


def _is_idle(worker: Worker) -> bool:
    gauges = worker.gauges
    busy = gauges.running or gauges.waiting or worker.streams or any(worker.unstarted.values())
    return not busy


def _has_tier(worker: Worker) -> bool:
    """Whether it loads from the host tier, and has nothing to do."""
    return TIER_PROBE in worker.attached.ready.features and _is_idle(worker)


def _failed(source: str, destination: str, verdict: str, error: str) -> KvPath:
    return KvPath(source=source, destination=destination, verdict=verdict, error=error)


def _tell(path: KvPath) -> None:
    if path.error is not None:
        level = logging.ERROR if path.verdict == "refused" else logging.WARNING
        text = "kv_path_%s from=%s to=%s cause=%s"
        _LOG.log(level, text, path.verdict, path.source, path.destination, path.error)
        return
    _LOG.info(
        "kv_path_probed from=%s to=%s transport=%s latency_us=%.0f gbps_64kb=%.1f gbps_256kb=%.1f "
        "gbps_64mb=%.1f",
        path.source,
        path.destination,
        path.transport,
        path.latency_us,
        path.gbps_64kb,
        path.gbps_256kb,
        path.gbps_64mb,
    )
    if path.verdict != "good":
        level = logging.ERROR if path.verdict == "refused" else logging.WARNING
        text = "kv_path_%s from=%s to=%s gbps_64mb=%.1f floor_gbps=%g"
        names = (path.verdict, path.source, path.destination)
        _LOG.log(level, text, *names, path.gbps_64mb, path.floor_gbps)
