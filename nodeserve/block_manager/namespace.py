"""Under which name a model's KV is kept: a digest of what the weights really hold.

Paths and headers tell nothing: other weights under an old path, or of the same shapes, would read
another model's KV. So every file of the model is read once; what was found is remembered by what
the file system says of it.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from nodeserve.errors import ConfigError

NAMESPACE_BYTES: Final = 32

_PIECE_BYTES: Final = 64 << 20
"""What one thread digests at a time; it lets go of the GIL meanwhile."""

_READ_BYTES: Final = 4 << 20
_MAX_REMEMBERED: Final = 10_000
_IGNORED: Final = {".md", ".png", ".jpg", ".svg"}
"""What people read and no engine does."""


class _Seen(msgspec.Struct, frozen=True):
    """What the file system said of a file, and what it held."""

    device: int
    inode: int
    num_bytes: int
    mtime_ns: int
    digest: bytes


class Cancelled(Exception):  # noqa: N818
    """The digest is needed no more."""


class WeightsDigests:
    """Digests models, and remembers files that have not changed in ``path``; for one thread."""

    def __init__(self, path: Path, *, num_threads: int | None = None) -> None:
        self._path = path
        self._num_threads = num_threads or min(8, os.cpu_count() or 1)
        self._cancelled = threading.Event()
        self.num_bytes_read = 0

    def cancel(self) -> None:
        """End a digest under way, from any thread, and every later one."""
        self._cancelled.set()

    def digest(self, model: str) -> bytes:
        """Return 32 bytes that stand for the content of every file of ``model``.

        ``model`` is a directory of weights, or one file. Reads all that it does not remember.

        Raises:
            ConfigError: There is no such model, it cannot be read, or it changes meanwhile.
            Cancelled: It was asked for no more.
        """
        root = Path(model)
        try:
            files = [root] if root.is_file() else sorted(_files(root))
            if not files:
                text = f"model {model} has no files to tell its weights by; name its directory"
                raise ConfigError(text)
            known = self._remembered()
            whole = hashlib.blake2b(digest_size=NAMESPACE_BYTES)
            with ThreadPoolExecutor(self._num_threads, "digest") as pool:
                for path in files:
                    seen = self._seen(path, known.get(str(path)), pool)
                    known[str(path)] = seen
                    name = str(path.relative_to(root)).encode()
                    whole.update(len(name).to_bytes(4, "little") + name + seen.digest)
        except OSError as error:
            text = f"model {model} cannot be read to tell its weights by: {error}"
            raise ConfigError(text) from error
        self._remember(known)
        return whole.digest()

    def _seen(self, path: Path, known: _Seen | None, pool: ThreadPoolExecutor) -> _Seen:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            before = os.fstat(fd)
            identity = _identity(before)
            if known is not None and identity == (
                known.device,
                known.inode,
                known.num_bytes,
                known.mtime_ns,
            ):
                return known
            starts = range(0, before.st_size, _PIECE_BYTES)
            whole = hashlib.blake2b(digest_size=NAMESPACE_BYTES)
            for piece in pool.map(lambda start: self._piece(fd, start), starts):
                whole.update(piece)
            if _identity(os.fstat(fd)) != identity:
                text = f"{path} changed while it was read; restart the worker when it is whole"
                raise ConfigError(text)
            self.num_bytes_read += before.st_size
            return _Seen(*identity, whole.digest())
        finally:
            os.close(fd)

    def _piece(self, fd: int, start: int) -> bytes:
        digest = hashlib.blake2b(digest_size=NAMESPACE_BYTES)
        buffer = memoryview(bytearray(_READ_BYTES))
        at, end = start, start + _PIECE_BYTES
        while at < end:
            if self._cancelled.is_set():
                raise Cancelled
            num_bytes = os.preadv(fd, [buffer[: end - at]], at)
            if num_bytes == 0:
                break
            digest.update(buffer[:num_bytes])
            at += num_bytes
        return digest.digest()

    def _remembered(self) -> dict[str, _Seen]:
        try:
            return msgspec.msgpack.decode(self._path.read_bytes(), type=dict[str, _Seen])
        except (OSError, msgspec.MsgspecError):
            return {}  # it is only ever a saving

    def _remember(self, known: dict[str, _Seen]) -> None:
        kept = dict(list(known.items())[-_MAX_REMEMBERED:])
        written = self._path.with_suffix(".new")
        try:
            written.write_bytes(msgspec.msgpack.encode(kept))
            written.replace(self._path)
        except OSError:
            written.unlink(missing_ok=True)


def namespace_of(weights_digest: bytes, kv_format: bytes) -> bytes:
    """Return the namespace of KV that these weights make in this format."""
    joined = hashlib.blake2b(weights_digest, digest_size=NAMESPACE_BYTES)
    joined.update(kv_format)
    return joined.digest()


def _files(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root, followlinks=False):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            path = Path(directory, name)
            if not name.startswith(".") and path.suffix not in _IGNORED and path.is_file():
                yield path


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
