from pathlib import Path

import pytest

from nodeserve.config.facts import Memory
from nodeserve.device.memory import read_huge_pages, read_memory

GIB = 1 << 30


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "a/b").mkdir(parents=True)
    kib = GIB >> 10
    text = f"MemTotal: {64 * kib} kB\nMemFree: 1 kB\nMemAvailable: {40 * kib} kB\nHugePages_Free: 0"
    (proc / "meminfo").write_text(text)
    (proc / "self/cgroup").write_text("0::/a/b\n")
    return {"proc_root": proc, "cgroup_root": groups}


def test_memory_is_the_machines_where_no_group_limits_it(roots):
    (roots["cgroup_root"] / "a/b/memory.max").write_text("max\n")
    assert read_memory(**roots) == Memory(total_bytes=64 * GIB, available_bytes=40 * GIB)


def test_memory_is_what_the_tightest_group_above_us_leaves(roots):
    (roots["cgroup_root"] / "a/b/memory.max").write_text("max\n")
    (roots["cgroup_root"] / "a/memory.max").write_text(f"{16 * GIB}\n")
    (roots["cgroup_root"] / "a/memory.current").write_text(f"{6 * GIB}\n")
    assert read_memory(**roots) == Memory(total_bytes=16 * GIB, available_bytes=10 * GIB)


def test_nothing_is_said_where_proc_does_not_say(tmp_path):
    found = read_memory(proc_root=tmp_path, cgroup_root=tmp_path)
    assert found == Memory(total_bytes=0, available_bytes=0)


def test_this_machine_has_memory():
    found = read_memory()
    assert 0 < found.available_bytes <= found.total_bytes


def test_huge_pages_are_counted_and_none_where_there_are_none(tmp_path):
    assert read_huge_pages(sys_root=tmp_path) == (0, 0)
    directory = tmp_path / "kernel/mm/hugepages/hugepages-2048kB"
    directory.mkdir(parents=True)
    (directory / "nr_hugepages").write_text("512\n")
    (directory / "free_hugepages").write_text("500\n")
    assert read_huge_pages(sys_root=tmp_path) == (512, 500)
