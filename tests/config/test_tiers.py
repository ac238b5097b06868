import os
from pathlib import Path

import pytest

from nodeserve.config.show import to_toml
from nodeserve.config.tiers import TierWish
from nodeserve.errors import ConfigError
from nodeserve.wire.spawn import DiskTierSpec

GIB = 1 << 30


def lines_of(refused) -> list[str]:
    return str(refused.value).splitlines()


def test_there_is_no_tier_unless_it_is_asked_for(load):
    assert load().tiers is None


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [
        (str(GIB), GIB),
        ('"64GiB"', 64 * GIB),
        ('"1.5 GiB"', 3 * GIB // 2),
        ('"50%"', 50 * GIB),
        ('"16777216"', 16 << 20),
    ],
)
def test_a_host_tier_has_the_size_that_was_written(load, size, num_bytes):
    assert load(f"[kv.host]\nsize = {size}").tiers.host_bytes == num_bytes


@pytest.mark.parametrize(
    ("size", "what"),
    [
        ("true", "is true: expected"),
        ("-1", "is -1: give a number of bytes above 0"),
        ('"64GB"', 'is \'64GB\': write bytes, or a size such as "64GiB", "50%"'),
        ("1024", "use 16 MiB or more"),
        ('"96GiB"', "this machine gives us 100.0 GiB of memory: use at most 95.0 GiB"),
        ('"100%"', "is 100.0 GiB, this machine gives us 100.0 GiB"),
    ],
)
def test_a_size_that_cannot_be_is_refused(load, size, what):
    with pytest.raises(ConfigError) as refused:
        load(f"[kv.host]\nsize = {size}")
    assert what in str(refused.value)
    assert "kv.host.size" in str(refused.value)


def test_a_tier_larger_than_what_is_free_is_warned_of(load):
    (warning,) = load('[kv.host]\nsize = "90%"').warnings
    assert "90.0 GiB, 80.0 GiB of memory are free" in warning


def test_a_disk_tier_has_its_directories_and_one_bound(load, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    toml = f"""
[kv]
log = "{tmp_path}/kv.log"
[kv.host]
size = "1GiB"
[kv.disk]
directories = ["{tmp_path}/a", "{tmp_path}/b"]
size = "128MiB"
"""
    config = load(toml)
    directories = (f"{tmp_path}/a", f"{tmp_path}/b")
    assert config.tiers.disk == DiskTierSpec(directories=directories, max_bytes=128 << 20)
    assert config.tiers.log_path == f"{tmp_path}/kv.log"
    assert "are on one file system" in config.warnings[0]
    assert load(to_toml(config)) == config


def test_flags_say_the_same_and_win(load, tmp_path):
    (tmp_path / "a").mkdir()
    wish = TierWish(host="2GiB", disk=f"{tmp_path}/a:64MiB")
    config = load('[kv.host]\nsize = "1GiB"', tiers=wish)
    assert config.tiers.host_bytes == 2 * GIB
    held = DiskTierSpec(directories=(f"{tmp_path}/a",), max_bytes=64 << 20)
    assert config.tiers.disk == held
    with pytest.raises(ConfigError, match="command line: --kv-host is 'much'"):
        load(tiers=TierWish(host="much"))
    with pytest.raises(ConfigError, match="command line: --kv-disk name no directory"):
        load(tiers=TierWish(host="2GiB", disk="64MiB"))


def test_what_needs_a_host_tier_is_refused_without_one(load, tmp_path):
    toml = f"""
[kv]
log = "/x"
[kv.disk]
directories = ["{tmp_path}"]
size = "1GiB"
[[listener]]
kv_host_share = 0.5
"""
    with pytest.raises(ConfigError) as refused:
        load(toml)
    said = lines_of(refused)
    assert [line.split(" is set")[0].rpartition(": ")[2] for line in said] == [
        "kv.log",
        "kv.disk",
        "kv_host_share",
    ]


def refused_directories(load, named: list[Path | str], size: str = "64MiB") -> str:
    listed = ", ".join(f'"{name}"' for name in named)
    toml = f'[kv.host]\nsize = "1GiB"\n[kv.disk]\ndirectories = [{listed}]\nsize = "{size}"'
    with pytest.raises(ConfigError) as refused:
        load(toml)
    return str(refused.value)


def test_directories_that_cannot_be_used_are_refused(load, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    gone = tmp_path / "gone" / "deeper"
    assert "No such file" in refused_directories(load, [gone])
    (tmp_path / "nowhere").symlink_to(gone)
    assert "No such file" in refused_directories(load, [tmp_path / "nowhere"])
    assert "which is a file" in refused_directories(load, [tmp_path / "file" / "below"])
    twice = [tmp_path / "new", tmp_path / "a" / ".." / "new"]
    assert "name each once" in refused_directories(load, twice)
    assert "which has room for" in refused_directories(load, [tmp_path / "new"], "900TiB")
    assert "which is a file" in refused_directories(load, [tmp_path / "file"])
    assert "name no directory" in refused_directories(load, [])
    both = [tmp_path / "a", tmp_path / "b"]
    assert f"which is {tmp_path}/a again" in refused_directories(load, both)
    assert "which has room for" in refused_directories(load, [tmp_path / "a"], "900TiB")
    assert "use 64 MiB or more" in refused_directories(load, [tmp_path / "a"], "1MiB")


def test_a_directory_that_is_not_there_is_made_only_where_its_parent_is_ours(
    load, tmp_path, monkeypatch
):
    named = [tmp_path / "new", tmp_path / "other"]
    listed = ", ".join(f'"{name}"' for name in named)
    toml = f'[kv.host]\nsize = "1GiB"\n[kv.disk]\ndirectories = [{listed}]\nsize = "64MiB"'
    assert load(toml).tiers.disk.directories == tuple(map(str, named))
    assert not list(tmp_path.glob("new"))  # a configuration that is read makes nothing
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    said = refused_directories(load, named)
    assert f"it is not there and {tmp_path} is not ours; make it, mode 0700" in said


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_is_refused(load, tmp_path):
    (tmp_path / "a").mkdir(mode=0o500)
    assert "may not write" in refused_directories(load, [tmp_path / "a"])


@pytest.mark.parametrize("share", ["0", "0.0", "1.5", "nan", "-1"])
def test_a_share_is_above_0_and_at_most_1(load, share):
    with pytest.raises(ConfigError, match=r"kv_host_share is .*: use a number above 0"):
        load(f'[kv.host]\nsize = "1GiB"\n[[listener]]\nkv_host_share = {share}')


def test_shares_are_the_quotas_of_their_listeners(load):
    toml = """
[kv.host]
size = "1GiB"
[[listener]]
kv_host_share = 0.75
[[listener]]
name = "batch"
socket = "/run/ns/b.sock"
kv_host_share = 0.5
[[listener]]
name = "free"
socket = "/run/ns/c.sock"
"""
    config = load(toml)
    assert config.kv_quotas == {"api": 0.75, "batch": 0.5}
    assert not config.warnings


def test_shares_that_leave_room_nobody_can_use_are_warned_of(load):
    config = load('[kv.host]\nsize = "1GiB"\n[[listener]]\nkv_host_share = 0.25')
    assert "is 0.25 together: nobody can fill the rest" in config.warnings[0]


def test_engines_that_cannot_use_the_tier_are_refused_by_name(load):
    toml = """
[kv.host]
size = "1GiB"
[[workers]]
role = "aggregated"
args = { prefix_caching_hash_algo = "sha256" }
[[workers]]
role = "aggregated"
args = { enable_prefix_caching = false }
"""
    with pytest.raises(ConfigError) as refused:
        load(toml)
    assert "worker aggregated-0: prefix_caching_hash_algo is 'sha256'" in str(refused.value)
    assert "worker aggregated-1: enable_prefix_caching is false" in str(refused.value)
    assert load(toml.replace("[kv.host]\nsize", "[kv]\nlease_ttl_s = 9 #")).tiers is None
