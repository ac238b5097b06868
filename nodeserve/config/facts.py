"""What the checks need to know of the machine and the model; gathered elsewhere."""

import msgspec


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. ``numa_node`` is None where the machine does not say."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    numa_node: int | None = None


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """One logical CPU that this process may run on; ``core`` numbers physical cores."""

    index: int
    core: int
    numa_node: int = 0


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What this process can have of the machine's memory, and what of it is free at present."""

    total_bytes: int
    available_bytes: int


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """The GPUs and CPUs of the node.

    Attributes:
        gpu_problem: Why GPUs could not be listed though there is a driver; None when all is
            well, which with no GPUs means that the machine has none.
        driver_version: The NVIDIA driver's; None without one.
        peer_gaps: Pairs of GPUs that cannot read each other's memory; None where the driver
            does not say.
    """

    gpus: tuple[Gpu, ...] = ()
    cpus: tuple[Cpu, ...] = ()
    gpu_problem: str | None = None
    driver_version: str | None = None
    peer_gaps: tuple[tuple[int, int], ...] | None = None


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's ``config.json`` says that matters before an engine loads it.

    Attributes:
        path: Absolute path of the model's directory.
        given: The model as the operator named it.
        architectures: vLLM chooses the model class by these.
        keys: The top-level keys of ``config.json``.
    """

    path: str
    given: str
    architectures: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
