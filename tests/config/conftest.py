"""A machine, a model and a loader that tests of the configuration share."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeserve.config.facts import Cpu, Gpu, Memory, Topology
from nodeserve.config.load import Flags, Surroundings, load_config
from nodeserve.config.node import NodeConfig


def gpus(count: int, *, per_node: int = 4) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(
            index=index,
            uuid=f"GPU-{index}",
            name="NVIDIA H100 80GB HBM3",
            memory_bytes=80 << 30,
            numa_node=index // per_node,
        )
        for index in range(count)
    )


def cpus(count: int) -> tuple[Cpu, ...]:
    return tuple(Cpu(index=index, core=index) for index in range(count))


def node_of(num_gpus: int, num_cpus: int) -> Topology:
    return Topology(gpus=gpus(num_gpus), cpus=cpus(num_cpus))


def write_model(directory: Path, **keys: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], **keys}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-llama")


@pytest.fixture
def load(model: Path, tmp_path: Path) -> Callable[..., NodeConfig]:
    """Load with these flags on a node of two CPUs, or on ``node``; ``toml`` is the file."""

    def loaded(toml: str | None = None, node: Topology | None = None, **flags) -> NodeConfig:
        if toml is not None:
            path = tmp_path / "config.toml"
            path.write_text(toml)
            flags["config"] = str(path)
        return load_config(
            Flags(**{"model": str(model), **flags}),
            Surroundings(
                environ={"RUNTIME_DIRECTORY": "/run/ns"},
                uid=1000,
                topology=lambda: node or node_of(0, 2),
                memory=lambda: Memory(total_bytes=100 << 30, available_bytes=80 << 30),
                simulated_gpus=("h100-sxm", "h200-sxm"),
            ),
        )

    return loaded
