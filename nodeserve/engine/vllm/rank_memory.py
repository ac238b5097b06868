"""Memory that the ranks of one engine on CPUs share, which must not outlive them.

vLLM makes a file of 4 MiB in /dev/shm per rank and never removes it, not even at a clean end.
Source: ``_CPUSHMDistributed`` in vllm/distributed/device_communicators/cpu_communicator.py (0.32).
"""

import os
from pathlib import Path
from typing import Any, Final

_SHARED: Final = "/dev/shm/"  # noqa: S108  (where shm_open has them)


def forget_names(_worker: Any) -> None:
    """Remove the names of what this rank shares with the others; all of them have it mapped.

    Args:
        _worker: vLLM's, as ``collective_rpc`` passes it once every rank's model is loaded.
    """
    ident = os.environ.get("VLLM_DIST_IDENT")
    if not ident:  # no engine on CPUs
        return
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.split(maxsplit=5)[5:]
        if path and path[0].startswith(f"{_SHARED}{ident}-"):
            Path(path[0].removesuffix(" (deleted)")).unlink(missing_ok=True)
