"""What the forkserver imports once."""

import subprocess
import sys

import pytest

from nodeserve.engine.vllm import preload
from nodeserve.engine.vllm.environment import Platform
from tests.support import vllm_entry


@pytest.mark.parametrize("platform", list(Platform))
def test_each_platform_preloads_its_own_worker(platform) -> None:
    wanted = {Platform.CPU: "cpu_worker", Platform.CUDA: "gpu_worker"}
    loaded = [name for name in preload.platform_modules(platform) if name.endswith("_worker")]
    assert loaded == [f"vllm.v1.worker.{wanted[platform]}"]


def test_naming_the_modules_imports_neither_torch_nor_vllm() -> None:
    code = (
        "import sys; from nodeserve.engine.vllm import environment, preload; "
        "sys.exit(bool({'torch', 'vllm'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0


@pytest.mark.vllm
def test_the_forkserver_has_loaded_them_all(vllm_context) -> None:
    """It passes over what it cannot import, and every start would then be slow."""
    ours, theirs = vllm_context.Pipe()
    process = vllm_context.Process(target=vllm_entry.missing_modules, args=(theirs,))
    process.start()
    assert ours.poll(90)
    assert ours.recv() == []
    process.join(10)
