"""What has happened in the host tier since its process started, in blocks unless said otherwise."""

from dataclasses import dataclass


@dataclass(slots=True)
class TierCounters:
    """Counters that only rise.

    ``lookups`` and ``overruns`` are messages; the latter found too many look-ups unreleased.
    ``refused`` were reserved and never written. ``stale`` are slots that an engine spoke of and
    had no right to. ``disk_hits`` and ``disk_misses`` are of what was missing in the host tier;
    ``disk_dropped`` found disk busy. ``read_bytes`` and ``written_bytes`` are what engines say
    that they copied out of slots and into them, and ``read_us`` and ``written_us`` what that took.
    """

    lookups: int = 0
    keys: int = 0
    hits: int = 0
    stores: int = 0
    refused: int = 0
    overruns: int = 0
    stale: int = 0
    disk_hits: int = 0
    disk_misses: int = 0
    disk_dropped: int = 0
    promotions: int = 0
    failed_promotions: int = 0
    read_bytes: int = 0
    read_us: int = 0
    written_bytes: int = 0
    written_us: int = 0

    def add_read(self, num_bytes: int, us: int) -> None:
        """Count what an engine has copied out of slots."""
        self.read_bytes += num_bytes
        self.read_us += us

    def add_written(self, num_bytes: int, us: int) -> None:
        """Count what an engine has copied into slots."""
        self.written_bytes += num_bytes
        self.written_us += us
