"""What a successor reads."""

from nodeserve.block_manager.small_file import SmallFile


def test_what_was_written_last_is_read(tmp_path) -> None:
    assert SmallFile(tmp_path / "f").read() is None
    SmallFile(tmp_path / "f").write(b"one")
    SmallFile(tmp_path / "f").write(b"two")
    assert SmallFile(tmp_path / "f").read() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_cannot_be_written_leaves_nothing_that_is_out_of_date(tmp_path, caplog) -> None:
    file = SmallFile(tmp_path / "f")
    file.write(b"one")
    (tmp_path / "f.new").mkdir()
    file.write(b"two")
    assert file.read() is None
    assert "file_not_kept" in caplog.text
