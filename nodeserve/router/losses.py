"""How many workers have died under one request, and whether it may be what kills them."""

from typing import Final

MAX_IN_A_ROW: Final = 3
"""A request under which so many workers died, one after the other and before any of them had
answered, is failed: what kills an engine does so again when it is computed again."""

MAX_IN_ALL: Final = 10
"""So many for a request that has answered in between: bad luck, but it must end some time."""


class Losses:
    """One request's count of dead workers."""

    __slots__ = ("in_a_row", "in_all")

    def __init__(self) -> None:
        self.in_a_row = 0
        self.in_all = 0

    @property
    def is_last_chance(self) -> bool:
        """Whether one more death makes it fail, so that no other suspect should die with it."""
        return self.in_a_row == MAX_IN_A_ROW - 1

    def answered(self) -> None:
        """Note that a worker survived the request's next step."""
        self.in_a_row = 0

    def worker_died(self) -> None:
        """Note that the worker of its leg died."""
        self.in_a_row += 1
        self.in_all += 1

    def owner_died(self) -> None:
        """Note that the worker died which kept its blocks and had no leg of it any more."""
        self.in_all += 1

    def why_too_many(self) -> str | None:
        """Say why the request should be failed; None as long as it may be tried again."""
        if self.in_a_row >= MAX_IN_A_ROW:
            return f"{self.in_a_row} workers died under it in a row"
        if self.in_all >= MAX_IN_ALL:
            return f"{self.in_all} workers died under it"
        return None
