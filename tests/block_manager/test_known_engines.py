"""Which engines a successor waits for."""

import pytest

from nodeserve.block_manager.known_engines import KnownEngines


def test_what_is_written_is_read_by_a_successor(tmp_path) -> None:
    KnownEngines(tmp_path / "known").write({3, 1})
    KnownEngines(tmp_path / "known").write({3, 9})
    assert KnownEngines(tmp_path / "known").read() == frozenset({3, 9})


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\xa1x"])
def test_what_cannot_be_read_is_not_known(tmp_path, content) -> None:
    (tmp_path / "known").write_bytes(content)
    assert KnownEngines(tmp_path / "known").read() is None
    assert KnownEngines(tmp_path / "missing").read() is None


def test_a_file_that_cannot_be_written_leaves_nothing_that_is_out_of_date(tmp_path) -> None:
    known = KnownEngines(tmp_path / "known")
    known.write({1})
    (tmp_path / "known.new").mkdir()
    known.write({1, 2})
    assert known.read() is None
