"""The tiers' account as Prometheus text, for a collector that reads files or runs commands.

Gateways' own /metrics are vLLM's, and count what was found outside a GPU's own cache as
``vllm:external_prefix_cache_hits``; what only the block manager knows is here.
"""

from collections.abc import Iterator
from typing import Final

from nodeserve.wire.kv_control import KvListenerLoad, KvTierLoad, KvTierStatus

_GAUGES: Final = {
    "capacity_bytes": "Size of the tier.",
    "used_bytes": "What is in use of it.",
    "pinned": "Blocks that engines read, or that an operator pinned.",
    "writing": "Blocks that engines write.",
    "quarantined": "Blocks whose writer has died.",
}
_COUNTERS: Final = {
    "hits": "Blocks that were asked for and there.",
    "misses": "Blocks that were asked for and not there.",
    "stores": "Blocks stored.",
    "evictions": "Blocks evicted.",
    "dropped": "Blocks not stored for want of room, quota or bandwidth.",
    "corrupt": "Blocks that did not pass their checksum.",
    "promotions": "Blocks brought up from the tier.",
    "read_bytes": "Bytes copied out of the tier.",
    "written_bytes": "Bytes copied into the tier.",
}
_SECONDS: Final = {
    "read": "What the copies out of the tier took, added up.",
    "written": "What the copies into the tier took, added up.",
}
_LISTENER_GAUGES: Final = ("used_bytes",)
_LISTENER_COUNTERS: Final = ("hits", "misses", "stores", "evictions", "dropped")


def to_metrics(status: KvTierStatus) -> str:
    """Return every tier's and listener's figures in the text format of Prometheus 0.0.4."""
    lines: list[str] = []
    for name, text in _GAUGES.items():
        lines += _family(f"kv_tier_{name}", "gauge", text, _samples(status.tiers, "tier", name))
    for name, text in _COUNTERS.items():
        samples = _samples(status.tiers, "tier", name)
        lines += _family(f"kv_tier_{name}_total", "counter", text, samples)
    for name, text in _SECONDS.items():
        samples = _samples(status.tiers, "tier", f"{name}_s")
        lines += _family(f"kv_tier_{name}_seconds_total", "counter", text, samples)
        speed = f"GB/s (10^9) of copies since the block manager started: {name}."
        samples = _samples(status.tiers, "tier", f"{name}_gbps")
        lines += _family(f"kv_tier_{name}_gbps", "gauge", speed, samples)
    for name in _LISTENER_GAUGES:
        samples = _samples(status.listeners, "listener", name)
        lines += _family(f"kv_listener_{name}", "gauge", _GAUGES[name], samples)
    for name in _LISTENER_COUNTERS:
        samples = _samples(status.listeners, "listener", name)
        lines += _family(f"kv_listener_{name}_total", "counter", _COUNTERS[name], samples)
    working = ((f'tier="{tier.name}"', int(tier.failure is None)) for tier in status.tiers)
    lines += _family("kv_tier_up", "gauge", "Whether the tier is not switched off.", working)
    return "".join(f"{line}\n" for line in lines)


def _samples(
    loads: tuple[KvTierLoad, ...] | tuple[KvListenerLoad, ...], label: str, name: str
) -> Iterator[tuple[str, float]]:
    for load in loads:
        value: float | None = getattr(load, name)
        if value is not None:
            yield f'{label}="{load.name}"', value


def _family(name: str, kind: str, text: str, samples: Iterator[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP nodeserve:{name} {text}"
    yield f"# TYPE nodeserve:{name} {kind}"
    for labels, value in samples:
        yield f"nodeserve:{name}{{{labels}}} {value}"
