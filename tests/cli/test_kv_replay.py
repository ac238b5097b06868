import json
import os

import pytest

from nodeserve.cli.kv_replay import slots_of
from nodeserve.errors import ConfigError
from nodeserve.kv.eviction import POLICIES
from nodeserve.kv.tier_log import LogHeader, Op, header, line
from nodeserve.wire.kv_tier import KEY_BYTES

BLOCK_BYTES = 1 << 20


@pytest.fixture
def log(tmp_path):
    """A log in which two prefixes of four blocks take turns: six slots hold only one of them."""
    first, second = os.urandom(4 * KEY_BYTES), os.urandom(4 * KEY_BYTES)
    text = header(LogHeader(num_slots=6, block_bytes=BLOCK_BYTES))
    for turn in range(6):
        keys = (first, second)[turn % 2]
        text += line(Op.LOOK_UP, "api", keys, at_s=turn)
        text += line(Op.STORE, "api", keys, at_s=turn + 0.5)
    path = tmp_path / "kv.log"
    path.write_text(text)
    return path


def test_policies_are_compared_at_the_size_of_the_log(run, log):
    lines = run("kv", "replay", log).output.splitlines()
    rows = [line.split() for line in lines[1:]]
    assert [row[0] for row in rows] == list(POLICIES)
    assert {row[3] for row in rows} == {"6"}


def test_a_larger_tier_finds_all_that_was_stored(run, log):
    shown = run("kv", "replay", log, "--policy", "lru", "--size", "6MiB,8MiB", "--json").output
    small, large = json.loads(shown)
    assert (small["num_slots"], large["num_slots"]) == (6, 8)
    assert (large["keys"], large["prefix_hits"], large["evictions"]) == (24, 16, 0)
    assert large["hit_rate"] == pytest.approx(16 / 24)
    assert small["hit_rate"] < large["hit_rate"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "best"], "'best' is not one of"),
        (["--size", "much"], "--size is 'much': write bytes"),
        (["--size", "1KiB"], "a block of this log has 1.0 MiB"),
    ],
)
def test_what_cannot_be_compared_is_refused(run, log, words, said):
    result = run("kv", "replay", log, *words)
    assert result.exit_code == 78
    assert said in result.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"hello\n", "does not begin with nodeserve-kv-log"),
        (b"\xff\xfe\n", "it is not UTF-8"),
    ],
)
def test_what_is_no_log_is_refused_with_its_name(run, tmp_path, content, said):
    path = tmp_path / "no.log"
    if content is not None:
        path.write_bytes(content)
    result = run("kv", "replay", path)
    assert result.exit_code == 78
    assert f"{path}: " in result.stderr
    assert said in result.stderr


def test_a_size_is_as_many_blocks_as_fit():
    assert slots_of("10MiB", 3 << 20) == 3
    with pytest.raises(ConfigError):
        slots_of("0", 3 << 20)
