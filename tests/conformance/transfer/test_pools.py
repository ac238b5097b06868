"""What every transport promises, whatever memory its pools lie in."""

import pytest

from nodeserve.errors import PeerError
from nodeserve.kv.layout import CopyRun
from tests.conformance.transfer.rig import POOL_BYTES
from tests.support.pool_owner import pattern

KIB = 1 << 10


def test_runs_land_where_they_should_and_nowhere_else(rig):
    owner = rig.owner()
    owner.fill(3)
    pool = rig.open(owner)
    theirs = pattern(3, POOL_BYTES)
    runs = [CopyRun(64 * KIB, 5, 100), CopyRun(0, 4096, 1), CopyRun(1 << 20, 1 << 21, 1 << 20)]
    pool.copy(runs)
    expected = bytearray(POOL_BYTES)
    for source, destination, length in runs:
        expected[destination : destination + length] = theirs[source : source + length]
    assert rig.own.read() == bytes(expected)
    pool.close()


def test_thousands_of_small_runs_are_all_copied(rig):
    owner = rig.owner()
    owner.fill(5)
    pool = rig.open(owner)
    runs = [CopyRun(i * 512, POOL_BYTES - (i + 1) * 512, 512) for i in range(POOL_BYTES // 512)]
    pool.copy(runs)
    theirs = pattern(5, POOL_BYTES)
    assert rig.own.read(POOL_BYTES - 512, 512) == theirs[:512]
    assert rig.own.read(0, 512) == theirs[-512:]
    pool.close()


def test_no_runs_are_no_copy(rig):
    owner = rig.owner()
    pool = rig.open(owner)
    pool.copy([])
    assert rig.own.read(0, 64) == bytes(64)
    pool.close()


@pytest.mark.parametrize(
    "run",
    [
        CopyRun(-1, 0, 1),
        CopyRun(0, -1, 1),
        CopyRun(0, 0, -1),
        CopyRun(POOL_BYTES - 1, 0, 2),
        CopyRun(0, POOL_BYTES - 1, 2),
        CopyRun(0, 0, POOL_BYTES + 1),
    ],
)
def test_a_run_outside_a_pool_is_refused_and_nothing_is_copied(rig, run):
    owner = rig.owner()
    owner.fill(7)
    pool = rig.open(owner)
    with pytest.raises(PeerError, match="not inside pools"):
        pool.copy([CopyRun(0, 0, 64), run])
    assert rig.own.read(0, 64) == bytes(64)
    pool.close()


def test_a_copy_sees_what_the_owner_wrote_after_the_pool_was_opened(rig):
    owner = rig.owner()
    pool = rig.open(owner)
    for seed in (11, 12):
        owner.fill(seed)
        pool.copy([CopyRun(0, 0, KIB)])
        assert rig.own.read(0, KIB) == pattern(seed, KIB)
    pool.close()


def test_an_ended_owner_is_not_current_and_its_handle_not_opened_again(rig):
    owner = rig.owner()
    pool = rig.open(owner)
    assert pool.is_current()
    owner.kill()
    assert not pool.is_current()
    pool.close()
    with pytest.raises(PeerError, match=r"has ended|probably ended"):
        rig.importer.open(owner.handle)


def test_the_next_generation_is_opened_anew_beside_the_last(rig):
    first = rig.owner()
    first.fill(21)
    old = rig.open(first)
    first.kill()
    second = rig.owner()
    second.fill(22)
    new = rig.open(second)
    new.copy([CopyRun(0, 0, KIB)])
    assert rig.own.read(0, KIB) == pattern(22, KIB)
    old.close()
    new.copy([CopyRun(KIB, 0, KIB)])
    assert rig.own.read(0, KIB) == pattern(22, 2 * KIB)[KIB:]
    new.close()


def test_a_pool_opened_twice_is_read_until_both_are_closed(rig):
    owner = rig.owner()
    owner.fill(31)
    one, other = rig.open(owner), rig.open(owner)
    one.close()
    other.copy([CopyRun(0, 0, KIB)])
    assert rig.own.read(0, KIB) == pattern(31, KIB)
    other.close()


@pytest.mark.parametrize(
    "change",
    [
        {"transport": "tcp"},
        {"pid": -1},
        {"pid": "1"},
        {"pid": None},
        {"bytes": None},
        {"bytes": 1 << 62},
    ],
)
def test_a_malformed_handle_is_refused_in_words(rig, change):
    owner = rig.owner()
    with pytest.raises(PeerError):
        rig.importer.open({**owner.handle, **change})
