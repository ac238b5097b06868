"""What the control messages name: roles, kinds of process, features of engines."""

import enum
from typing import Final

HANDOFF: Final = "handoff"
"""The feature of an engine that can hand its KV over and take a peer's."""

PROBE: Final = "probe"
"""The feature of an engine with HANDOFF that says where its KV lies (``nodeserve_pools``) and
measures how fast it reads a peer's (``nodeserve_probe``)."""

TIER_PROBE: Final = "tier_probe"
"""The feature of an engine that measures how fast blocks come to it from the host tier
(``nodeserve_probe_tier``)."""

RESUME: Final = "resume"
"""The feature of an engine that continues a request after tokens that another engine made."""


class Role(enum.StrEnum):
    """What a worker is used for. Roles are routing: an engine with HANDOFF can do all three."""

    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "aggregated"


class ProcessKind(enum.StrEnum):
    """The kinds of process in a node."""

    SUPERVISOR = "supervisor"
    FORKSERVER = "forkserver"
    DISPATCHER = "dispatcher"
    BLOCK_MANAGER = "block-manager"
    MONITOR = "monitor"
    LEDGER = "ledger"
    GATEWAY = "gateway"
    WORKER = "worker"
