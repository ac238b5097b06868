"""Which engines the block manager has let in, for its successor to wait for."""

import contextlib
from pathlib import Path

import msgspec

_DECODER = msgspec.msgpack.Decoder(list[int])


class KnownEngines:
    """A small file in the runtime directory, which lives as long as the tier's memory."""

    def __init__(self, path: Path) -> None:
        """Use ``path``; what is in it counts until the first ``write``."""
        self._path = path

    def read(self) -> frozenset[int] | None:
        """Return the generations that were written last; None where nothing can be told."""
        try:
            return frozenset(_DECODER.decode(self._path.read_bytes()))
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, generations: set[int]) -> None:
        """Remember these generations, whole or not at all.

        A file that cannot be written is taken away: not to know is slow and safe, to know too
        few is not.
        """
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(msgspec.msgpack.encode(sorted(generations)))
            new.replace(self._path)
        except OSError:
            for path in (new, self._path):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
