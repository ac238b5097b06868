"""What the GPU check needs: a real driver, or with ``--fake-gpu`` the fake one and no GPU at all.

Each test is a row of the check's table: its docstring is the row's name, what it tells
``record_property`` are the row's figures, and its mark ``twin`` names the test that holds the same
without a GPU.
"""

import ctypes
import ctypes.util
import functools
import importlib.util
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeserve.device.cuda_driver import LIBRARY, CudaContext, CudaDriver
from nodeserve.wire.spawn import KvSpec
from tests.conformance.transfer.rig import Rig
from tests.support import vllm_entry
from tests.support.fake_driver import build
from tests.support.vllm_node import VllmNode, forkserver_context

REAL_ARGS = {
    "attention_backend": "TRITON_ATTN",
    "enforce_eager": True,
    "async_scheduling": True,
    "kv_cache_memory_bytes": 256 << 20,
    # Two or three engines share the GPU.
    "gpu_memory_utilization": 0.2,
}


@dataclass(frozen=True)
class Gpu:
    """The driver under test, and which GPU."""

    library: str
    is_fake: bool

    def context(self, ordinal: int = 0) -> CudaContext:
        return CudaContext(CudaDriver(self.library), ordinal)

    @functools.cached_property
    def uuids(self) -> tuple[str, ...]:
        return tuple(device.uuid for device in CudaDriver(self.library).devices())


@pytest.fixture(scope="session")
def gpu(request, tmp_path_factory):
    if request.config.getoption("--fake-gpu"):
        return Gpu(str(build(tmp_path_factory.mktemp("fake-cuda"))), is_fake=True)
    return Gpu(LIBRARY, is_fake=False)


@pytest.fixture
def needs_torch_on_gpu(gpu):
    if gpu.is_fake:
        pytest.skip("torch does not know the fake driver")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch is built without CUDA")
    return torch


@pytest.fixture(params=["cuda_ipc", "cuda_vmm"])
def rig(request, gpu):
    with Rig(request.param, gpu.library) as made:
        yield made


@pytest.fixture
def ipc_rig(gpu):
    with Rig("cuda_ipc", gpu.library) as made:
        yield made


@pytest.fixture
def vmm_rig(gpu):
    with Rig("cuda_vmm", gpu.library) as made:
        yield made


class Engines:
    """Engines that share one GPU, or the fake."""

    def __init__(self, node: VllmNode, gpu: Gpu) -> None:
        self.node = node
        self._gpu = gpu

    def start(self, generation: int, kv: KvSpec, **args: object) -> None:
        given = args if self._gpu.is_fake else {**REAL_ARGS, **args}
        spec = self.node.spec(generation, kv, given)
        if self._gpu.is_fake:
            entry = functools.partial(vllm_entry.run_engine_on_fake_gpu, self._gpu.library)
            self.node.start_as(entry, spec)
        else:
            self.node.start(msgspec.structs.replace(spec, gpu_uuids=self._gpu.uuids[:1]))

    def facts(self, generation: int) -> dict[str, Any]:
        """What runs the model of an engine that is ready."""
        return json.loads((self.node.folder / f"worker-{generation}.json").read_text())


@pytest.fixture(scope="module")
def engines(gpu):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    folder = Path(tempfile.mkdtemp(prefix="ns-"))
    environ = {} if gpu.is_fake else {"VLLM_USE_V2_MODEL_RUNNER": "1"}
    with forkserver_context(environ) as context:
        model = folder / "model"
        model.mkdir()
        process = context.Process(target=vllm_entry.make_model, args=(str(model),))
        process.start()
        process.join(180)
        assert process.exitcode == 0
        node = VllmNode(context, folder, model)
        if not gpu.is_fake:
            node.start_deadline_s, node.answer_deadline_s = 180.0, 90.0  # kernels are compiled
        try:
            yield Engines(node, gpu)
        finally:
            node.close()
            shutil.rmtree(folder, ignore_errors=True)


class RowWriter:
    """Writes a line of JSON as each row ends: a check that is cut short keeps what it has."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Function) -> Any:
        """Let the report say what only the item knows."""
        report = yield
        doc = (item.obj.__doc__ or item.name).strip().splitlines()[0]
        report.row = f"{doc} [{item.callspec.id}]" if hasattr(item, "callspec") else doc
        twin = item.get_closest_marker("twin")
        report.twin = twin.args[0] if twin else ""
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        if report.when == "teardown" and report.skipped:
            return
        reason = ""
        if isinstance(report.longrepr, tuple):
            reason = report.longrepr[-1]
        elif report.longrepr is not None:
            lines = str(report.longrepr).strip().splitlines()
            reason = next((li[1:].strip() for li in lines if li.startswith("E ")), lines[-1])
        row = {
            "id": report.nodeid,
            "row": report.row,
            "twin": report.twin,
            "outcome": report.outcome,
            "seconds": round(report.duration, 1),
            "figures": dict(report.user_properties),
            "reason": reason.removeprefix("Skipped: "),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if (path := config.getoption("--gpu-rows")) is not None:
        config.pluginmanager.register(RowWriter(Path(path)))


def pinned(num_bytes: int) -> tuple[ctypes.Array, int]:
    """Return memory and the first page's address in it."""
    memory = (ctypes.c_char * (num_bytes + 4096))()
    return memory, -(-ctypes.addressof(memory) // 4096) * 4096
