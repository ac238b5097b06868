"""A small file in the runtime directory, which lives as long as the tier's memory."""

import contextlib
import logging
from pathlib import Path
from typing import Final

_LOG: Final = logging.getLogger(__name__)


class SmallFile:
    """Content for a successor, whole or not there."""

    def __init__(self, path: Path) -> None:
        """Use ``path``; what is in it counts until the first ``write``."""
        self._path = path

    def read(self) -> bytes | None:
        """Return what was written last; None where nothing can be told."""
        try:
            return self._path.read_bytes()
        except OSError:
            return None

    def write(self, content: bytes) -> None:
        """Replace the content; where that cannot be, the file is taken away, for it would lie."""
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(content)
            new.replace(self._path)
        except OSError as error:
            _LOG.warning("file_not_kept path=%s cause=%s", self._path, error)
            for path in (new, self._path):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
