"""How the GPU check measures."""

import time
from collections.abc import Callable

SIZES = tuple(1 << shift for shift in (12, 16, 18, 20, 24, 26, 28))


def best_s(action: Callable[[], object], times: int = 5) -> float:
    """Return the shortest of some runs, behind one that does not count."""
    action()
    found = []
    for _ in range(times):
        begun_s = time.perf_counter()
        action()
        found.append(time.perf_counter() - begun_s)
    return min(found)


def gbps(num_bytes: int, took_s: float) -> float:
    return float(f"{num_bytes / max(took_s, 1e-9) / 1e9:.3g}")
