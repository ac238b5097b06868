"""The operating system's part of the disk tier: files of one directory, by name.

Files are opened for each operation: it costs some microseconds against a disk's hundreds, holds
no descriptor for each of thousands of segments, and finds out when a file is gone.
"""

import contextlib
import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Sequence
from ctypes import Array, c_char
from pathlib import Path
from typing import Final, Protocol

from nodeserve.errors import PeerError
from nodeserve.kv.disk_record import PAGE_BYTES

Buffer = memoryview | mmap.mmap | Array[c_char]

_LOG: Final = logging.getLogger(__name__)

_LOCK: Final = "lock"
_PROBE: Final = "probe"
_NEW: Final = ".new"
_MODE: Final = 0o600


class DirectoryFiles(Protocol):
    """What is done with the files of one directory. Everything may raise OSError.

    Reads and writes of pages may run on several threads at once, the rest on one.
    """

    @property
    def direct(self) -> bool:
        """Whether reads and writes of pages pass the page cache."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return every file's size in bytes, by name."""
        ...

    def read_pages(self, name: str, buffers: Sequence[Buffer], offset: int) -> int:
        """Read into page-aligned buffers; return how many bytes there were."""
        ...

    def write_pages(self, name: str, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all of these page-aligned buffers."""
        ...

    def allocate(self, name: str, num_bytes: int) -> None:
        """Make the file, or make it longer, with disk blocks for all of ``num_bytes``."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file."""
        ...

    def read_whole(self, name: str) -> bytes:
        """Return a file's content."""
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Give a file new content, at once and durably or not at all."""
        ...

    def check(self) -> None:
        """Raise OSError where the directory is not what was opened any more."""
        ...

    def close(self) -> None:
        """Let another process have the directory."""
        ...


class OsFiles:
    """A directory of a file system, locked for this process."""

    def __init__(self, path: str) -> None:
        """Make the directory if its parent is there, lock it and try what its file system can.

        Raises:
            PeerError: Another process has it.
            OSError: It cannot be made or written to.
        """
        self._path = Path(path)
        with contextlib.suppress(FileExistsError):
            self._path.mkdir(mode=0o700)
            _LOG.info("disk_directory_made directory=%s mode=0700", path)
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock_fd = -1
        try:
            self._lock_fd = self._open(_LOCK, os.O_RDWR | os.O_CREAT)
            self._lock()
            self._direct = self._probe()
        except BaseException:
            self.close()
            raise

    @property
    def direct(self) -> bool:
        """Whether the file system has O_DIRECT."""
        return self._direct

    def sizes(self) -> dict[str, int]:
        """Return every file's size."""
        with os.scandir(self._fd) as entries:
            return {e.name: e.stat(follow_symlinks=False).st_size for e in entries if e.is_file()}

    def read_pages(self, name: str, buffers: Sequence[Buffer], offset: int) -> int:
        """Read into buffers, past the page cache where that can be."""
        fd = self._open(name, os.O_RDONLY | self._direct_flag)
        try:
            num_bytes = os.preadv(fd, buffers, offset)
            if not self._direct:
                os.posix_fadvise(fd, offset, num_bytes, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        return num_bytes

    def write_pages(self, name: str, buffers: Sequence[Buffer], offset: int) -> None:
        """Write buffers, past the page cache where that can be."""
        num_bytes = sum(len(buffer) for buffer in buffers)
        fd = self._open(name, os.O_WRONLY | self._direct_flag)
        try:
            written = os.pwritev(fd, buffers, offset)
            if not self._direct:
                # Starts writing back and drops what is written back already.
                os.posix_fadvise(fd, offset, num_bytes, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        if written != num_bytes:
            reason = f"took {written} of {num_bytes} bytes"
            raise OSError(errno.EIO, reason, str(self._path / name))

    def allocate(self, name: str, num_bytes: int) -> None:
        """Make the file ``num_bytes`` long with disk blocks for all of it."""
        fd = self._open(name, os.O_WRONLY | os.O_CREAT)
        try:
            os.posix_fallocate(fd, 0, num_bytes)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=self._fd)

    def read_whole(self, name: str) -> bytes:
        """Return a file's content."""
        with os.fdopen(self._open(name, os.O_RDONLY), "rb") as file:
            return file.read()

    def replace(self, name: str, content: bytes) -> None:
        """Write a new file beside the old one and put it in its place."""
        fresh = name + _NEW
        with os.fdopen(self._open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(content)
            file.flush()
            os.fdatasync(file.fileno())
        self.rename(fresh, name)

    def check(self) -> None:
        """Raise OSError where the path leads elsewhere by now."""
        now, then = self._path.stat(), os.fstat(self._fd)
        if (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino):
            raise OSError(errno.ESTALE, "is another directory by now", str(self._path))

    def close(self) -> None:
        """Unlock the directory."""
        for fd in (self._lock_fd, self._fd):
            if fd >= 0:
                os.close(fd)

    @property
    def _direct_flag(self) -> int:
        return os.O_DIRECT if self._direct else 0

    def _open(self, name: str, flags: int) -> int:
        try:
            return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE, dir_fd=self._fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path / name)) from None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = (
                f"disk tier {self._path}: another process has this directory; give each node "
                "directories of its own"
            )
            raise PeerError(text) from error

    def _probe(self) -> bool:
        page = mmap.mmap(-1, PAGE_BYTES)
        flags = os.O_RDWR | os.O_CREAT
        for flag in (os.O_DIRECT, 0):
            try:
                fd = self._open(_PROBE, flags | flag)
            except OSError as error:
                if error.errno == errno.EINVAL and flag:
                    continue
                raise
            try:
                os.pwritev(fd, [page], 0)
                os.preadv(fd, [page], 0)
            except OSError as error:
                if error.errno != errno.EINVAL or not flag:
                    raise
            else:
                return bool(flag)
            finally:
                os.close(fd)
                self.remove(_PROBE)
        raise OSError(errno.EINVAL, "takes neither direct nor buffered pages", str(self._path))
