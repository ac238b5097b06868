"""Files of one directory: locked, allocated, direct where that can be."""

import errno
import fcntl
import mmap
import os
import resource

import pytest

from nodeserve.errors import PeerError
from nodeserve.transfer.disk_files import OsFiles


class WithoutDirect(OsFiles):
    """A file system that does not have O_DIRECT."""

    def _open(self, name, flags):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT here", name)
        return super()._open(name, flags)


class WithoutDirectWrites(OsFiles):
    """One that opens for O_DIRECT and then refuses it, as some network file systems do."""

    def _probe(self):
        def pwritev(fd, buffers, offset):
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "not like this")
            return real(fd, buffers, offset)

        real = os.pwritev
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwritev", pwritev)
            return super()._probe()


def page_of(content: bytes) -> mmap.mmap:
    page = mmap.mmap(-1, 4096)
    page[: len(content)] = content
    return page


@pytest.fixture(params=[OsFiles, WithoutDirect, WithoutDirectWrites])
def files(request, tmp_path):
    opened = request.param(str(tmp_path / "kv"))
    yield opened
    opened.close()


def test_pages_are_read_as_they_were_written_whether_direct_or_not(files) -> None:
    files.allocate("a", 5 * 4096)
    files.write_pages("a", [page_of(b"one"), page_of(b"two")], 4096)
    pages = [page_of(b""), page_of(b"")]
    assert files.read_pages("a", pages, 4096) == 8192
    assert [bytes(page[:3]) for page in pages] == [b"one", b"two"]
    assert files.read_pages("a", pages, 4 * 4096) == 4096
    assert files.sizes() == {"lock": 0, "a": 5 * 4096}
    if type(files) is not OsFiles:
        assert not files.direct


def test_an_allocated_file_has_its_blocks_before_anything_is_written(files, tmp_path) -> None:
    files.allocate("a", 1 << 20)
    assert (tmp_path / "kv" / "a").stat().st_blocks * 512 >= 1 << 20


def test_replaced_content_is_the_new_one_whole(files) -> None:
    files.replace("c", b"first and long")
    files.replace("c", b"second")
    assert files.read_whole("c") == b"second"
    assert set(files.sizes()) == {"lock", "c"}
    files.rename("c", "d")
    files.remove("d")
    assert set(files.sizes()) == {"lock"}


def test_a_directory_is_one_process_s_alone(files, tmp_path) -> None:
    with pytest.raises(PeerError, match="another process has this directory"):
        OsFiles(str(tmp_path / "kv"))
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700


def test_a_closed_directory_can_be_opened_again(tmp_path) -> None:
    OsFiles(str(tmp_path)).close()
    OsFiles(str(tmp_path)).close()


def test_a_directory_is_made_for_us_alone_and_that_is_said_once(tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    for _ in range(2):
        OsFiles(str(tmp_path / "new")).close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert len([r for r in caplog.records if "disk_directory_made" in r.msg]) == 1


def test_a_directory_whose_parent_is_missing_is_not_made(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        OsFiles(str(tmp_path / "mount" / "kv"))


def test_a_directory_that_was_moved_away_is_noticed(files, tmp_path) -> None:
    files.check()
    (tmp_path / "kv").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        files.check()
    (tmp_path / "kv").mkdir()
    with pytest.raises(OSError, match="is another directory by now"):
        files.check()


def test_an_error_names_the_file(files, tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        files.read_pages("gone", [page_of(b"")], 0)
    assert caught.value.filename == str(tmp_path / "kv" / "gone")


def test_a_write_that_was_cut_short_is_an_error(files) -> None:
    files.allocate("a", 4096)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(OSError, match="took 4096 of 8192 bytes"):
            files.write_pages("a", [page_of(b""), page_of(b"")], 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
