import os

import pytest

from nodeserve.ids import Generation
from nodeserve.supervisor.cgroup import ControlGroup, ControlGroups, _own_group, delegated_groups

MOUNTS = """\
25 20 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""


def test_our_own_group_is_found_below_the_mount(tmp_path):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    (tmp_path / "cgroup").write_text("1:name=systemd:/x\n0::/system.slice/nodeserve.service\n")
    found = _own_group(tmp_path / "mountinfo", tmp_path / "cgroup")
    assert str(found) == "/sys/fs/cgroup/system.slice/nodeserve.service"


@pytest.mark.parametrize(
    ("mounts", "group"),
    [("", "0::/a"), (MOUNTS, "4:memory:/a\n"), (MOUNTS, "")],
    ids=["no cgroup2", "version 1 alone", "nothing"],
)
def test_without_the_second_version_there_is_none(tmp_path, mounts, group):
    (tmp_path / "mountinfo").write_text(mounts)
    (tmp_path / "cgroup").write_text(group)
    assert _own_group(tmp_path / "mountinfo", tmp_path / "cgroup") is None
    assert _own_group(tmp_path / "absent", tmp_path / "absent") is None


def test_a_group_that_nobody_left_to_us_is_not_used():
    assert delegated_groups() is None


def test_we_move_aside_and_earlier_leftovers_go(tmp_path):
    (tmp_path / "decode-0-7").mkdir()
    (tmp_path / "decode-1-8").mkdir()
    (tmp_path / "decode-1-8" / "cgroup.procs").write_text("")  # as if somebody were in it
    groups = ControlGroups(tmp_path)
    assert (tmp_path / "supervisor" / "cgroup.procs").read_text() == str(os.getpid())
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "supervisor",
        "decode-1-8",
    }
    assert groups.make("decode-0", Generation(9)).path == tmp_path / "decode-0-9"
    assert (tmp_path / "decode-0-9").is_dir()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("low 0\noom 1\noom_kill 0\n", False), ("oom_kill 1\n", True), (None, None), ("", None)],
)
def test_the_kernels_count_of_kills_for_memory_is_read(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "memory.events").write_text(text)
    assert ControlGroup(tmp_path).ran_out_of_memory() is expected


def test_a_group_that_is_gone_is_empty_and_may_be_killed_and_removed(tmp_path):
    group = ControlGroup(tmp_path / "gone")
    group.kill()
    group.remove()
    assert group.is_empty()
