import sys

import msgspec

from nodeserve.config.facts import Cpu, Gpu
from nodeserve.device.topology import (
    GpuReport,
    parse_cpu_list,
    read_cpus,
    read_gpus,
    read_topology,
)

GPU = Gpu(index=0, uuid="GPU-a", name="H100", memory_bytes=80 << 30, numa_node=1)


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def saying(report: GpuReport) -> tuple[str, ...]:
    return child(f"print({msgspec.json.encode(report).decode()!r})")


def test_gpus_are_what_the_child_reports():
    report = GpuReport(gpus=(GPU,), driver_version="600.1")
    assert read_gpus(saying(report), 10.0) == report


def test_a_driver_that_hangs_is_a_problem_after_the_deadline():
    report = read_gpus(child("import time; time.sleep(60)"), 0.2)
    assert report.gpus == ()
    assert "did not answer within 0.2 s" in (report.problem or "")


def test_a_child_that_dies_is_a_problem_with_its_last_words():
    report = read_gpus(child("raise SystemExit('no luck')"), 10.0)
    assert report.problem == "the NVML child ended with 1: no luck"


def test_a_child_that_cannot_be_run_is_a_problem():
    assert "cannot be run" in (read_gpus(("/nowhere/python",), 1.0).problem or "")


def test_a_machine_without_a_driver_has_no_gpus_and_no_problem():
    report = read_gpus(saying(GpuReport()), 10.0)
    assert (report.gpus, report.problem) == ((), None)


def test_cpus_come_with_cores_and_numa_nodes(tmp_path):
    for cpu, package, core in ((0, 0, 0), (1, 0, 1), (2, 1, 0), (4, 0, 0)):
        place = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        place.mkdir(parents=True)
        (place / "core_id").write_text(f"{core}\n")
        (place / "physical_package_id").write_text(f"{package}\n")
    for node, cpus in ((0, "0-1,4"), (1, "2")):
        place = tmp_path / f"devices/system/node/node{node}"
        place.mkdir(parents=True)
        (place / "cpulist").write_text(f"{cpus}\n")
    assert read_cpus(tmp_path, {0, 1, 2, 4}) == (
        Cpu(index=0, core=0),
        Cpu(index=1, core=1),
        Cpu(index=2, core=2, numa_node=1),
        Cpu(index=4, core=0),
    )


def test_a_machine_that_says_nothing_of_its_cpus_still_has_them(tmp_path):
    assert read_cpus(tmp_path, {3, 5}) == (Cpu(index=3, core=0), Cpu(index=5, core=1))


def test_only_the_cpus_of_this_process_count(tmp_path):
    topology = read_topology(
        sys_root=tmp_path,
        allowed_cpus=lambda: {7},
        nvml_command=saying(GpuReport(gpus=(GPU,), driver_version="600.1")),
    )
    assert [cpu.index for cpu in topology.cpus] == [7]
    assert (topology.gpus, topology.driver_version, topology.gpu_problem) == ((GPU,), "600.1", None)


def test_lists_of_cpus_are_read_as_linux_writes_them():
    assert parse_cpu_list("0-3,8\n") == [0, 1, 2, 3, 8]
    assert parse_cpu_list("") == []
