"""A bound is cut into segments so that everything fits, or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.errors import ConfigError
from nodeserve.kv.disk_bound import DEFAULT_SEGMENT_BYTES, MIN_SEGMENTS, plan_log
from nodeserve.kv.disk_checkpoint import checkpoint_bytes


@given(st.integers(1 << 20, 1 << 45))
def test_segments_and_two_checkpoints_fit_and_little_is_left_over(max_bytes) -> None:
    shape = plan_log("d", max_bytes)
    segments = shape.max_segments * shape.segment_bytes
    checkpoints = 2 * checkpoint_bytes(shape.max_segments, shape.segment_bytes)
    assert segments + checkpoints < max_bytes
    assert shape.max_segments >= MIN_SEGMENTS
    if max_bytes >= 64 << 20:
        assert segments > 0.85 * max_bytes


@pytest.mark.parametrize(
    ("max_bytes", "segment_bytes"),
    [(1 << 40, DEFAULT_SEGMENT_BYTES), (1 << 30, 64 << 20), (1 << 20, 64 << 10)],
)
def test_small_bounds_get_small_segments(max_bytes, segment_bytes) -> None:
    assert plan_log("d", max_bytes).segment_bytes == segment_bytes


def test_a_bound_for_less_than_four_segments_is_refused_with_the_least_that_will_do() -> None:
    with pytest.raises(ConfigError, match="hold 0 segments of 65536 bytes, 4 are the least"):
        plan_log("d", 100_000)
    with pytest.raises(ConfigError, match=r"allow [0-9]+ bytes or more") as caught:
        plan_log("d", 1 << 20, 1 << 20)
    least = int(str(caught.value).split("allow ")[1].split()[0])
    assert plan_log("d", least, 1 << 20).max_segments == MIN_SEGMENTS
    with pytest.raises(ConfigError):
        plan_log("d", least - 1, 1 << 20)


@pytest.mark.parametrize("segment_bytes", [0, 4096, 70_000, 1 << 33])
def test_a_segment_s_size_that_cannot_be_is_refused(segment_bytes) -> None:
    with pytest.raises(ConfigError, match="choose another size"):
        plan_log("d", 1 << 45, segment_bytes)
