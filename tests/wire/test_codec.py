"""Claims about reading msgpack."""

import msgspec
import pytest

from nodeserve.wire.codec import decode_any, decode_map, decoded, encode


def test_map_is_read() -> None:
    assert decode_map(encode({"a": [1]})) == {"a": [1]}


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x91" * 100_000, b"\xa2\xff\xfe", b"\x81\x91\x81\x01\x02\x01", b"\xc6\xff\xff\xff\xff"],
)
def test_all_that_msgspec_raises_becomes_a_value_error(frame: bytes) -> None:
    with pytest.raises(ValueError, match=f"thing of {len(frame)} bytes"):
        decoded(decode_any, "thing", frame)


def test_extension_types_pass_through() -> None:
    value = [msgspec.msgpack.Ext(3, b"raw"), 1 << 63]
    assert decode_any(encode(value)) == value
