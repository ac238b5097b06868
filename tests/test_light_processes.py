"""The processes that must start fast and stay small import neither torch nor vLLM."""

import subprocess
import sys

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
        "nodeserve.supervisor.main",
        "nodeserve.worker.main",
    ],
)
def test_a_fresh_interpreter_imports_it_without_torch_or_vllm(module):
    program = f"import sys, {module}; print(*[n for n in {HEAVY!r} if n in sys.modules])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")
