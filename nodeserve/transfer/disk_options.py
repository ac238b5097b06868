"""How the disk tier uses its directories; what an operator sets is in DiskTierSpec."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """All per directory. ``segment_bytes`` None is chosen by the bound.

    Readers and writers are threads; each has one call to the disk under way. It writes up to
    ``batch_records`` or ``batch_bytes``, or reads records that lie behind one another, of up to
    ``read_batch_bytes``; one record always. Queues hold what waits and
    what is under way.
    """

    segment_bytes: int | None = None
    num_readers: int = 4
    num_writers: int = 4
    batch_records: int = 32
    batch_bytes: int = 4 << 20
    read_batch_bytes: int = 2 << 20
    max_queued_reads: int = 1024
    max_queued_writes: int = 128
    checkpoint_interval_s: float = 60.0
    check_interval_s: float = 5.0
    """How often the directory is looked for where it was."""
