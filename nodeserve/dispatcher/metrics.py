"""The workers' scheduler statistics, merged so that a gateway's /metrics is true for the node.

A gateway knows one engine. The gauges it shows become the node's: requests summed, KV usage
weighted by blocks. What counts up goes to exactly one gateway, so that sums over listeners
are the node's. A prompt that was handed over looks twice into a prefix cache, once in each
engine; only the prefill worker's look is counted.
"""

from collections.abc import Mapping
from typing import Any, Final

from nodeserve.router.messages import LegKind

_COUNTERS: Final = (
    "kv_cache_eviction_events",
    "spec_decoding_stats",
    "kv_connector_stats",
    "ec_connector_stats",
    "cudagraph_stats",
    "perf_stats",
    "iteration_details",
)
"""Fields of vLLM's SchedulerStats that say what one step did; empty or nil when nothing."""

_FETCHING: Final = "num_kv_fetch_reqs_by_stage"

_CACHE_COUNTERS: Final = ("prefix_cache_stats", "connector_prefix_cache_stats")


class EngineGauges:
    """What one engine last said of itself."""

    __slots__ = ("fetching", "kv_usage", "num_blocks", "running", "skipped", "waiting")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.running = 0
        self.waiting = 0
        self.skipped = 0
        self.kv_usage = 0.0
        self.fetching: dict[str, int] = {}


class NodeStats:
    """Sums over the attached engines, kept up to date by differences."""

    def __init__(self) -> None:
        self._running = 0
        self._waiting = 0
        self._skipped = 0
        self._used_blocks = 0.0
        self._num_blocks = 0
        self._fetching: dict[str, int] = {}
        self._last: dict[str, Any] = {}

    def joined(self, gauges: EngineGauges) -> None:
        """Count an engine in."""
        self._num_blocks += gauges.num_blocks

    def left(self, gauges: EngineGauges) -> None:
        """Count an engine out."""
        self._num_blocks -= gauges.num_blocks
        self._running -= gauges.running
        self._waiting -= gauges.waiting
        self._skipped -= gauges.skipped
        self._used_blocks -= gauges.kv_usage * gauges.num_blocks
        self._add_fetching(gauges.fetching, -1)

    def take(self, gauges: EngineGauges, stats: Any, unstarted: Mapping[LegKind, int]) -> bool:
        """Turn one engine's statistics of a step into the node's, in place.

        ``unstarted`` counts the engine's legs that have not answered: among them are those
        whose look into the prefix cache this step reports.

        Returns:
            Whether they count something up, so that one gateway must get them.

        Raises:
            ValueError: They are not SchedulerStats.
        """
        try:
            running = int(stats["num_running_reqs"])
            waiting = int(stats["num_waiting_reqs"])
            skipped = int(stats.get("num_skipped_waiting_reqs", 0))
            usage = float(stats["kv_cache_usage"])
            fetching = {str(k): int(v) for k, v in _map(stats, _FETCHING).items()}
            counts = self._count_cache_looks(stats, unstarted)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            text = f"scheduler statistics cannot be read: {error!r}"
            raise ValueError(text) from error
        self._running += running - gauges.running
        self._waiting += waiting - gauges.waiting
        self._skipped += skipped - gauges.skipped
        self._used_blocks += (usage - gauges.kv_usage) * gauges.num_blocks
        gauges.running, gauges.waiting, gauges.skipped = running, waiting, skipped
        gauges.kv_usage = usage
        if fetching or gauges.fetching:
            self._add_fetching(gauges.fetching, -1)
            self._add_fetching(fetching, 1)
            gauges.fetching = fetching
        self._patch(stats)
        self._last = stats
        return counts or any(stats.get(name) for name in _COUNTERS)

    def gauges(self) -> dict[str, Any] | None:
        """Return statistics that show the node as it is and count nothing; None before any."""
        if not self._last:
            return None
        stats = dict(self._last)
        for name in _COUNTERS:
            if name in stats:
                stats[name] = [] if name == "kv_cache_eviction_events" else None
        for name in _CACHE_COUNTERS:
            if stats.get(name) is not None:
                stats[name] = _zeroed(stats[name])
        self._patch(stats)
        return stats

    def _patch(self, stats: dict[str, Any]) -> None:
        stats["num_running_reqs"] = self._running
        stats["num_waiting_reqs"] = self._waiting
        stats["num_skipped_waiting_reqs"] = self._skipped
        usage = self._used_blocks / self._num_blocks if self._num_blocks else 0.0
        stats["kv_cache_usage"] = min(max(usage, 0.0), 1.0)
        if self._fetching:
            stats[_FETCHING] = dict(self._fetching)

    def _add_fetching(self, fetching: dict[str, int], sign: int) -> None:
        for stage, count in fetching.items():
            self._fetching[stage] = self._fetching.get(stage, 0) + sign * count

    def _count_cache_looks(self, stats: dict[str, Any], unstarted: Mapping[LegKind, int]) -> bool:
        """Leave out the looks of decode legs; in a mixed step, by their share of the legs."""
        looks = _map(stats, "prefix_cache_stats")
        if looks.get("requests"):
            pulled = unstarted[LegKind.DECODE]
            others = unstarted[LegKind.PREFILL] + unstarted[LegKind.WHOLE]
            if pulled:
                # One message does not say which look was whose: with others about, an estimate.
                share = others / (others + pulled)
                for name in ("requests", "queries", "hits"):
                    looks[name] = round(looks[name] * share)
        return bool(looks.get("requests") or looks.get("reset"))


def _map(stats: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a field that is a map or nil; raises TypeError for anything else."""
    value = stats.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        text = f"{name} is {value!r:.40}, not a map"
        raise TypeError(text)
    return value


def _zeroed(looks: dict[str, Any]) -> dict[str, Any]:
    """Return the same counters, all at nothing."""
    return {name: type(value)() for name, value in looks.items()}
