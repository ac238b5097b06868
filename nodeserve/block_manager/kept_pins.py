"""Which prefixes the operator has pinned, for a successor to pin again."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from nodeserve.block_manager.small_file import SmallFile


class _Kept(msgspec.Struct, frozen=True):
    namespace: bytes
    keys: tuple[bytes, ...]


_DECODER = msgspec.msgpack.Decoder(_Kept)


class KeptPins:
    """Kept beside the tier's memory, under the namespace of its keys."""

    def __init__(self, path: Path) -> None:
        """Use ``path``."""
        self._file = SmallFile(path)

    def read(self, namespace: bytes) -> tuple[bytes, ...]:
        """Return the keys of what was pinned under ``namespace``; none where nothing is known."""
        content = self._file.read()
        try:
            kept = None if content is None else _DECODER.decode(content)
        except msgspec.MsgspecError:
            return ()
        return kept.keys if kept is not None and kept.namespace == namespace else ()

    def write(self, namespace: bytes, keys: Sequence[bytes]) -> None:
        """Remember these and no others, whole or not at all."""
        self._file.write(msgspec.msgpack.encode(_Kept(namespace, tuple(keys))))
