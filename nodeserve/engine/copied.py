"""What an engine has copied between its KV and a tier, until the block manager is told of it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Copied:
    """Bytes, and the seconds that the copies took: those that went on at once are added up."""

    num_bytes: int = 0
    seconds: float = 0.0

    def add(self, num_bytes: int, seconds: float) -> None:
        """Count a copy."""
        self.num_bytes += num_bytes
        self.seconds += seconds

    def take(self) -> tuple[int, int]:
        """Return bytes and whole microseconds, and begin anew."""
        taken = self.num_bytes, round(self.seconds * 1e6)
        self.num_bytes, self.seconds = 0, 0.0
        return taken
