"""Measure what the monitor costs: ``scripts/monitor_cost [SECONDS]``."""

import sys
import tempfile
from pathlib import Path

from nodeserve.monitor.main import run
from tests.support.fake_nvml_library import FakeNvml
from tests.support.monitor_rig import MonitorRig


def main() -> None:
    """Print it."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeNvml(Path(folder) / "nvml")
        (Path(folder) / "run").mkdir()
        rig = MonitorRig(
            Path(folder) / "run",
            gpu_uuids=tuple(fake.uuid(gpu) for gpu in range(8)),
            nvml_library=str(fake.library),
        )
        rig.entry = "scripts.monitor_cost"
        try:
            rig.start()
            rig.next_report()
            before, reads = rig.cpu_s(), len(rig.reads)
            rig.hear(seconds)
            used_s = rig.cpu_s() - before
            num_reads = len(rig.reads) - reads
        finally:
            rig.close()
    sys.stdout.write(
        f"monitor: {used_s:.2f} s of CPU in {seconds:g} s for 8 GPUs at 10 Hz, "
        f"{100 * used_s / seconds:.2f} % of a core; {num_reads} readings\n"
    )


if __name__ == "__main__":
    if sys.argv[2:] == ["none"]:  # as the rig starts it: this is the monitor
        run(bytes.fromhex(sys.argv[1]), [])
    else:
        main()
