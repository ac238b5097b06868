"""The processes that must start fast and stay small import neither torch nor vLLM."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "vllm")


@pytest.mark.parametrize(
    "module",
    [
        "nodeserve.block_manager.main",
        "nodeserve.cli.main",
        "nodeserve.cli.energy_plot",
        "nodeserve.cli.energy_report",
        "nodeserve.cli.serve",
        "nodeserve.cli.status",
        "nodeserve.client",
        "nodeserve.dispatcher.main",
        "nodeserve.monitor.main",
        "nodeserve.supervisor.main",
        "nodeserve.worker.main",
    ],
)
def test_a_fresh_interpreter_imports_it_without_torch_or_vllm(module):
    program = f"import sys, {module}; print(*[n for n in {HEAVY!r} if n in sys.modules])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_nothing_but_the_readers_of_nvml_imports_it():
    """A driver that hangs is then the monitor's, or a short-lived child's, and nobody else's."""
    package = Path(__file__).parents[1] / "nodeserve"
    importers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"^\s*(?:import|from)\s+pynvml\b", path.read_text(), re.MULTILINE)
    }
    assert importers == {"device/nvml.py", "device/nvml_gpu.py", "device/nvml_child.py"}
    users = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"import.*\b(?:nvml|nvml_gpu|nvml_child)\b|device\.nvml", path.read_text())
    }
    assert {user.partition("/")[0] for user in users} <= {"device", "monitor"}
