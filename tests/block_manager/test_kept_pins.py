"""Pins for a successor."""

import pytest

from nodeserve.block_manager.kept_pins import KeptPins


def test_pins_are_read_under_their_own_namespace_only(tmp_path) -> None:
    KeptPins(tmp_path / "pins").write(b"n", [b"a", b"b"])
    assert KeptPins(tmp_path / "pins").read(b"n") == (b"a", b"b")
    assert KeptPins(tmp_path / "pins").read(b"m") == ()


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", b"\x81\xa4keys\x01"])
def test_what_cannot_be_read_is_no_pin(tmp_path, content) -> None:
    (tmp_path / "pins").write_bytes(content)
    assert KeptPins(tmp_path / "pins").read(b"n") == ()
    assert KeptPins(tmp_path / "missing").read(b"n") == ()
