"""Names for the identifiers that cross process and module borders."""

from typing import Final, NewType

RequestId = NewType("RequestId", str)
"""The dispatcher's own key of one client request: unique on the node, never a client's string."""

LegId = NewType("LegId", str)
"""One attempt to run (part of) a request on one worker; what engines know as the request id."""

WorkerName = NewType("WorkerName", str)
"""What operators call a worker, for example ``decode-0``; outlives its processes."""

Generation = NewType("Generation", int)
"""One incarnation of one process, counted per node and never reused.

A worker's generation is its ``engine_index`` on the EngineCore wire, so it fits two bytes.
"""

LeaseId = NewType("LeaseId", int)
"""The right to read one handoff's blocks; unique within the generation that granted it."""

BlockHash = NewType("BlockHash", int)
"""Chained hash of a full block of tokens and everything before it, within one process."""

MAX_GENERATION: Final = 0xFFFF
"""Source: the two-byte little-endian identity in vllm/v1/engine/core.py (0.32)."""
