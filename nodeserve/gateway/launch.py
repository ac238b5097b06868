"""Describe how to start a listener's gateway; the supervisor carries the description out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nodeserve.bus.endpoints import ipc_address
from nodeserve.config.node import Listener
from nodeserve.gateway import python_server, rust_server
from nodeserve.ids import Generation
from nodeserve.wire.spawn import EngineSpec, InflightLimitSpec, PythonGatewaySpec

PYTHON_ENTRY: Final = "nodeserve.gateway.python_server:run"

ENGINE_READY_TIMEOUT_S: Final = 7 * 24 * 3600
"""A gateway starts before its engine and waits; how long a start may take the supervisor says."""

KEEP_ALIVE_S: Final = 75
"""How long an idle client connection stays open. vLLM's own 5 s is below the idle time of the
connection pools of openai and httpx clients, which then meet a closed connection now and then."""


@dataclass(frozen=True, slots=True)
class ExecGateway:
    """Execute ``argv`` with exactly ``env``, inheriting exactly ``pass_fds`` by their numbers."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    pass_fds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ForkedGateway:
    """Fork a child that calls ``entry`` with the encoded ``spec`` and ``fds``.

    ``env`` comes on top of the fork server's own environment.
    """

    entry: str
    spec: PythonGatewaySpec
    fds: tuple[int, ...]
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class InternalSockets:
    """The two addresses between one gateway's incarnation and the dispatcher."""

    input_path: Path
    output_path: Path

    @property
    def input_address(self) -> str:
        """ZeroMQ address that requests leave through."""
        return ipc_address(self.input_path)

    @property
    def output_address(self) -> str:
        """ZeroMQ address that outputs arrive at."""
        return ipc_address(self.output_path)


@dataclass(frozen=True, slots=True)
class GatewayLaunch:
    """What the supervisor knows when it starts a listener's gateway.

    Attributes:
        listener: The listener's settings.
        generation: This incarnation of the gateway.
        runtime_dir: Where the two internal sockets are.
        engine: What the node runs; its ``args`` are merged below the listener's own.
        served_model_names: What clients may call the model; the first is shown to them.
        api_keys: The keys of the listener's ``api_key_file``.
        http_fd: The listening socket for clients, by the number that the gateway knows it by.
        drain_s: How long after SIGTERM it may finish requests; the supervisor kills it sooner when
            it has nothing left to wait for.
        place: Which of the listener's gateways it is.
    """

    listener: Listener
    generation: Generation
    runtime_dir: Path
    engine: EngineSpec
    served_model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = field(repr=False)
    http_fd: int
    drain_s: float
    place: int = 0


def internal_sockets(runtime_dir: Path, generation: Generation) -> InternalSockets:
    """Return where a gateway and the dispatcher meet; each incarnation has its own place."""
    return InternalSockets(
        runtime_dir / f"gw-{generation}-in.sock", runtime_dir / f"gw-{generation}-out.sock"
    )


def counts_path(runtime_dir: Path, listener: Listener) -> Path:
    """Return where a listener's python gateways count what they take and what they turn away."""
    return runtime_dir / f"{listener.name}.counts"


def rust_gateway(
    launch: GatewayLaunch, *, input_fd: int, output_fd: int, environ: Mapping[str, str]
) -> ExecGateway:
    """Describe a gateway that is ``vllm-rs``.

    Args:
        launch: The gateway to start.
        input_fd: Listening Unix socket at ``internal_sockets(...).input_path``, by the number
            that the new process knows it by.
        output_fd: The same at ``internal_sockets(...).output_path``.
        environ: The daemon's environment.

    Raises:
        ConfigError: The binary is missing, or the settings ask for what it cannot do.
    """
    name, model = launch.listener.name, launch.engine.model
    args = {**launch.engine.args, **launch.listener.args}
    arguments = rust_server.settings(name, model, args) | {
        "model": model,
        "model_tag": model,
        "served_model_name": list(launch.served_model_names),
        "engine_ready_timeout_secs": ENGINE_READY_TIMEOUT_S,
        "http_timeout_keep_alive": KEEP_ALIVE_S,
        "shutdown_timeout": math.ceil(launch.drain_s),
    }
    argv = rust_server.command(
        rust_server.find_binary(environ),
        http_fd=launch.http_fd,
        input_fd=input_fd,
        output_fd=output_fd,
        arguments=arguments,
    )
    env = rust_server.environment(environ, listener=name, api_keys=launch.api_keys)
    return ExecGateway(argv, env, (launch.http_fd, input_fd, output_fd))


def python_gateway(launch: GatewayLaunch) -> ForkedGateway:
    """Describe a gateway that is vLLM's Python API server."""
    sockets = internal_sockets(launch.runtime_dir, launch.generation)
    spec = PythonGatewaySpec(
        name=launch.listener.name,
        generation=launch.generation,
        listen_address=launch.listener.address,
        input_address=sockets.input_address,
        output_address=sockets.output_address,
        engine=launch.engine,
        args=(
            *python_server.arguments(launch.engine.args, launch.listener.args),
            "--served-model-name",
            *launch.served_model_names,
        ),
        limit=_inflight_limit(launch),
    )
    env = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(ENGINE_READY_TIMEOUT_S),
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_S),
        rust_server.API_KEY_VARIABLE: "\n".join(launch.api_keys),
    }
    return ForkedGateway(PYTHON_ENTRY, spec, (launch.http_fd,), env)


def _inflight_limit(launch: GatewayLaunch) -> InflightLimitSpec | None:
    """Return the limit on requests in flight, where both of its parts are set."""
    listener = launch.listener
    running, queued = listener.tenant.max_running_requests, listener.tenant.max_queued_requests
    if running is None or queued is None:
        return None
    return InflightLimitSpec(
        max_requests=running + queued,
        counts_path=str(counts_path(launch.runtime_dir, listener)),
        place=launch.place,
        num_places=listener.gateways,
    )
