"""Which engines the block manager has let in, for its successor to wait for."""

from pathlib import Path

import msgspec

from nodeserve.block_manager.small_file import SmallFile

_DECODER = msgspec.msgpack.Decoder(list[int])


class KnownEngines:
    """Kept beside the tier's memory: not to know is slow and safe, to know too few is not."""

    def __init__(self, path: Path) -> None:
        """Use ``path``; what is in it counts until the first ``write``."""
        self._file = SmallFile(path)

    def read(self) -> frozenset[int] | None:
        """Return the generations that were written last; None where nothing can be told."""
        content = self._file.read()
        try:
            return None if content is None else frozenset(_DECODER.decode(content))
        except msgspec.MsgspecError:
            return None

    def write(self, generations: set[int]) -> None:
        """Remember these generations, whole or not at all."""
        self._file.write(msgspec.msgpack.encode(sorted(generations)))
