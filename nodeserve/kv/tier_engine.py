"""What one engine holds of the host tier."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Engine:
    """``calls`` are the slots that its look-ups pinned, ``writing`` those that it may write."""

    generation: int
    worker: str
    calls: dict[int, list[int]] = field(default_factory=dict)
    writing: set[int] = field(default_factory=set)
