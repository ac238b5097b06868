"""Copies between addresses of this process by its own CPU."""

import ctypes
from collections.abc import Sequence
from typing import Final

from nodeserve.transfer.base import AddressRun, Fence


class HostCopier:
    """A ``Copier`` for pools in host memory: what a step computes is there when it returns."""

    pinner: Final = None

    def fence(self) -> Fence | None:
        """Return None: there is nothing to wait for."""
        return None

    def copy(self, runs: Sequence[AddressRun], after: Fence | None) -> None:  # noqa: ARG002
        """Copy ``runs``; other threads run meanwhile, since each copy lets go of the GIL."""
        for source, destination, length in runs:
            ctypes.memmove(destination, source, length)

    def close(self) -> None:
        """Do nothing: nothing was registered."""
