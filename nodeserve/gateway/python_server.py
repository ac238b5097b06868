"""The gateway that is vLLM's Python API server: the whole API, in a forked child."""

import importlib
import json
import socket
from collections.abc import Iterable, Mapping
from typing import Final, Protocol, cast

import msgspec

from nodeserve.config.node import Args, ArgValue
from nodeserve.errors import ConfigError
from nodeserve.wire.spawn import GRAMMAR_BACKEND, PythonGatewaySpec

API_SERVER: Final = "nodeserve.engine.vllm.api_server"

ENGINE_ONLY: Final = frozenset(
    {
        "data_parallel_size",
        "distributed_executor_backend",
        "kv_events_config",
        "kv_offloading_backend",
        "kv_offloading_size",
        "kv_transfer_config",
        "pipeline_parallel_size",
        "tensor_parallel_size",
        "worker_cls",
        "worker_extension_cls",
    }
)
"""Arguments about how an engine runs: a front end runs no model and hands over no KV."""

_DEFAULTS: Final[Mapping[str, ArgValue]] = {
    "disable_uvicorn_access_log": True,
    "enable_prompt_tokens_details": True,
    "structured_outputs_config": {},
}


class ApiServer(Protocol):
    """The one module that imports vLLM for a gateway."""

    def serve(self, spec: PythonGatewaySpec, sock: socket.socket) -> None:
        """Serve until SIGTERM."""
        ...


def run(spec: bytes, fds: list[int]) -> None:
    """Serve one listener in this process until SIGTERM; the entry point of the forked child.

    Several such processes may share one listening socket: each connection goes to one of them.

    Args:
        spec: An encoded ``PythonGatewaySpec``.
        fds: The listening socket, nothing else.

    Raises:
        ConfigError: vLLM refuses the arguments or the model.
    """
    gateway = msgspec.msgpack.decode(spec, type=PythonGatewaySpec)
    sock = socket.socket(fileno=fds[0])
    server = cast("ApiServer", importlib.import_module(API_SERVER))
    server.serve(gateway, sock)


def arguments(engine: Args, listener: Args) -> tuple[str, ...]:
    """Return the command line of vLLM's API server for one listener.

    The model's own arguments must be the engine's, because the front end derives limits and
    defaults from them; how the engine runs is left out. A listener's argument wins.

    Args:
        engine: The workers' vLLM arguments by their Python names.
        listener: The listener's own.

    Raises:
        ConfigError: ``structured_outputs_config`` is not a table.
    """
    merged = {**_DEFAULTS, **engine, **listener}
    if merged.get("tool_call_parser"):
        merged.setdefault("enable_auto_tool_choice", True)
    merged["structured_outputs_config"] = _one_grammar(merged["structured_outputs_config"])
    named = ((name, merged[name]) for name in sorted(merged.keys() - ENGINE_ONLY))
    return tuple(word for name, value in named for word in _words(name, value))


def _one_grammar(value: ArgValue) -> ArgValue:
    """Name the grammar backend: a worker keeps the first one it meets, whatever comes later."""
    if value is not None and not isinstance(value, dict):
        message = f"structured_outputs_config is {value!r}; write it as a table"
        raise ConfigError(message)
    table = dict(value or {})
    if table.get("backend", "auto") == "auto":
        table["backend"] = GRAMMAR_BACKEND
    return table


def _words(name: str, value: ArgValue) -> Iterable[str]:
    flag = "--" + name.replace("_", "-")
    match value:
        case None:
            return ()
        case True:
            return (flag,)
        case False:
            return (f"--no-{flag.removeprefix('--')}",)
        case dict():
            return (flag, json.dumps(value))
        case list():
            return (flag, *(item if isinstance(item, str) else json.dumps(item) for item in value))
        case _:
            return (flag, str(value))
