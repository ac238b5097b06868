import subprocess
import sys
from pathlib import Path

import msgspec

from nodeserve.config.facts import Gpu
from nodeserve.device.nvml_child import GpuAbsentError, report
from nodeserve.device.topology import GpuReport


class FakeNvml:
    def __init__(self, num_gpus: int, *, broken: int | None = None, opens: bool = True):
        self.count = num_gpus
        self.broken = broken
        self.opens = opens
        self.apart: set[int] | None = set()

    def open(self) -> str:
        if not self.opens:
            raise GpuAbsentError
        return "600.1"

    def num_gpus(self) -> int:
        return self.count

    def gpu(self, index: int) -> dict[str, str | int]:
        if index == self.broken:
            raise RuntimeError("GPU is lost")
        return {
            "uuid": f"GPU-{index}",
            "name": "H100",
            "memory_bytes": 80 << 30,
            "pci": f"00000000:{index:02X}:00.0",
        }

    def reads_peer(self, index: int, peer: int) -> bool:
        if self.apart is None:
            raise RuntimeError("not supported")
        return not {index, peer} & self.apart


def test_pairs_without_direct_access_are_listed_where_the_driver_says(tmp_path):
    nvml = FakeNvml(3)
    assert report(nvml, tmp_path).peer_gaps == ()
    nvml.apart = {1}
    assert report(nvml, tmp_path).peer_gaps == ((0, 1), (1, 2))
    nvml.apart = None
    assert report(nvml, tmp_path).peer_gaps is None


def test_gpus_are_listed_with_their_numa_nodes(tmp_path):
    for bus, node in (("00", "1"), ("01", "-1")):
        (tmp_path / f"0000:{bus}:00.0").mkdir()
        (tmp_path / f"0000:{bus}:00.0" / "numa_node").write_text(f"{node}\n")
    found = report(FakeNvml(3), tmp_path)
    assert [gpu.numa_node for gpu in found.gpus] == [1, None, None]
    assert found.gpus[0] == Gpu(
        index=0, uuid="GPU-0", name="H100", memory_bytes=80 << 30, numa_node=1
    )
    assert (found.driver_version, found.problem) == ("600.1", None)


def test_no_driver_is_not_a_problem(tmp_path):
    assert report(FakeNvml(0, opens=False), tmp_path) == GpuReport()


def test_a_gpu_that_is_lost_is_a_problem(tmp_path):
    found = report(FakeNvml(2, broken=1), tmp_path)
    assert (found.gpus, found.problem) == ((), "GPU 1 does not answer: GPU is lost")


def test_the_child_prints_a_report_on_any_machine():
    done = subprocess.run(
        [sys.executable, "-m", "nodeserve.device.nvml_child"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=60,
        check=True,
    )
    msgspec.json.decode(done.stdout, type=GpuReport)
