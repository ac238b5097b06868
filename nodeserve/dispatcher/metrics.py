"""The workers' scheduler statistics, merged so that a gateway's /metrics is true for the node.

A gateway knows one engine. The gauges it shows become the node's: requests summed, KV usage
weighted by blocks. What counts up goes to exactly one gateway, so that sums over listeners
are the node's. A prompt that was handed over looks twice into a prefix cache, once in each
engine; only the prefill worker's look is counted.
"""

from collections.abc import Mapping
from typing import Any, Final

from nodeserve.router.messages import LegKind
from nodeserve.wire.codec import decode_map

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
    """What one engine last said of itself.

    ``said`` are the statistics that said it, empty if they also counted something: the same
    bytes again say nothing new.
    """

    __slots__ = ("fetching", "kv_usage", "num_blocks", "running", "said", "skipped", "waiting")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.said = b""
        self.running = 0
        self.waiting = 0
        self.skipped = 0
        self.kv_usage = 0.0
        self.fetching: dict[str, int] = {}


class NodeStats:
    """Sums over the attached engines, kept up to date by differences.

    Attributes:
        changed: Set whenever a report would say something new; who reports clears it. Never set
            while there is nothing to report: vllm-rs refuses a message that says nothing.
    """

    def __init__(self) -> None:
        self.changed = False
        self._running = 0
        self._waiting = 0
        self._skipped = 0
        self._used_blocks = 0.0
        self._num_blocks = 0
        self._fetching: dict[str, int] = {}
        self._looks: dict[str, dict[str, Any]] = {}
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
        self.changed = bool(self._last)

    def take(self, gauges: EngineGauges, said: bytes, unstarted: Mapping[LegKind, int]) -> bool:
        """Add one engine's statistics of a step.

        ``unstarted`` counts the engine's legs that have not answered: among them are those
        whose look into the prefix cache this step reports.

        Returns:
            Whether they count something that cannot be added up here, so that one gateway
            must get the next report before another step is taken.

        Raises:
            ValueError: They are not SchedulerStats; nothing changed.
        """
        stats = decode_map(said)
        try:
            running = int(stats["num_running_reqs"])
            waiting = int(stats["num_waiting_reqs"])
            skipped = int(stats.get("num_skipped_waiting_reqs", 0))
            usage = float(stats["kv_cache_usage"])
            fetching = {str(k): int(v) for k, v in _map(stats, _FETCHING).items()}
            looks = self._with_looks(stats, unstarted)
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
        if looks is not None:
            self._looks = looks
        self._last = stats
        self.changed = True
        urgent = any(map(stats.get, _COUNTERS))
        gauges.said = b"" if urgent or looks is not None else said
        return urgent

    def report(self) -> dict[str, Any] | None:
        """Return statistics of the node with all that was counted since the last report.

        None before any engine has said something.
        """
        if not self._last:
            return None
        stats = dict(self._last)
        for name in _CACHE_COUNTERS:
            if stats.get(name) is not None:
                stats[name] = {n: type(value)() for n, value in stats[name].items()}
        stats.update(self._looks)
        self._looks = {}
        for name in _COUNTERS:
            if name in stats:
                self._last[name] = [] if name == "kv_cache_eviction_events" else None
        stats["num_running_reqs"] = self._running
        stats["num_waiting_reqs"] = self._waiting
        stats["num_skipped_waiting_reqs"] = self._skipped
        usage = self._used_blocks / self._num_blocks if self._num_blocks else 0.0
        stats["kv_cache_usage"] = min(max(usage, 0.0), 1.0)
        if self._fetching:
            stats[_FETCHING] = dict(self._fetching)
        return stats

    def _add_fetching(self, fetching: dict[str, int], sign: int) -> None:
        for stage, count in fetching.items():
            self._fetching[stage] = self._fetching.get(stage, 0) + sign * count

    def _with_looks(
        self, stats: dict[str, Any], unstarted: Mapping[LegKind, int]
    ) -> dict[str, dict[str, Any]] | None:
        """Return all looks into caches so far with a step's added; None when it has none."""
        added = None
        for name in _CACHE_COUNTERS:
            looks = _map(stats, name)
            if any(looks.values()):
                own = name == "prefix_cache_stats"
                share = _share_to_count(unstarted) if own else 1.0
                added = added if added is not None else dict(self._looks)
                added[name] = _sum(self._looks.get(name, {}), looks, share)
        return added


def _share_to_count(unstarted: Mapping[LegKind, int]) -> float:
    """Return which share of an engine's looks is not that of decode legs.

    One message does not say which look was whose: with both about, this is an estimate.
    """
    pulled = unstarted[LegKind.DECODE]
    others = unstarted[LegKind.PREFILL] + unstarted[LegKind.WHOLE]
    return others / (others + pulled) if pulled else 1.0


def _sum(total: Mapping[str, Any], looks: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Add counters, flags and maps of counters, name by name."""
    result = dict(total)
    for name, value in looks.items():
        match value:
            case bool():
                result[name] = value or result.get(name, False)
            case int():
                result[name] = result.get(name, 0) + round(value * share)
            case dict():
                result[name] = _sum(result.get(name, {}), value, share)
            case _:
                text = f"{name} is {value!r:.40}, no counter"
                raise TypeError(text)
    return result


def _map(stats: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a field that is a map or nil; raises TypeError for anything else."""
    value = stats.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        text = f"{name} is {value!r:.40}, not a map"
        raise TypeError(text)
    return value
