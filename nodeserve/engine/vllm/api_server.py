"""vLLM's Python API server on a socket and an engine that are given to it."""

import asyncio
import os
import signal
import socket
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

import uvloop
from vllm import envs
from vllm.entrypoints.launchers import launcher
from vllm.entrypoints.launchers.api_server.entry import run_server_worker
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import NoSignalServer, validate_api_server_args
from vllm.exceptions import VLLMValidationError
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.system_utils import set_ulimit
from vllm.v1.engine import core_client

from nodeserve.clock import MonotonicClock
from nodeserve.engine.inflight_limit import App, InflightLimit, LimitedApp, inflight_limit
from nodeserve.engine.vllm.args import reason_of
from nodeserve.engine.vllm.http_limits import LimitedHttp
from nodeserve.errors import ConfigError
from nodeserve.wire.spawn import PythonGatewaySpec

MIN_PLUGIN_PATH = 4  # vLLM's own test: a shorter one stands for none


REFUSALS: Final = (
    *(FileNotFoundError, IsADirectoryError, PermissionError),
    *(KeyError, NotImplementedError, TypeError, ValueError, VLLMValidationError),
)
"""What vLLM raises for a setting that it cannot use. Once it serves, the errors of a request
end with that request and do not get here."""


class DrainingServer(NoSignalServer):
    """vLLM's server, which on SIGTERM takes nothing new, finishes what it has, and ends.

    vLLM's own way is to close the engine's sockets first, which cuts every request off.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, with a handler in place of the one that ``serve_http`` has just set."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        await super().startup(sockets)

    def _drain(self) -> None:
        self.should_exit = True


class _Terminated(BaseException):
    """SIGTERM came before the server had its own handler."""


class _Parser(FlexibleArgumentParser):
    """vLLM's parser, which otherwise ends the process with status 2 and a page of usage."""

    def error(self, message: str) -> None:
        raise ConfigError(f"gateway python: vLLM refuses its arguments: {message}; change them")


def parse(spec: PythonGatewaySpec) -> Namespace:
    """Return the API server's arguments, checked as vLLM checks them.

    Raises:
        ConfigError: vLLM does not know an argument or refuses its value.
    """
    words = ["--model", spec.engine.model, *spec.args, "--enforce-eager"]
    args = make_arg_parser(_Parser()).parse_args(words)
    args.api_key = [key for key in os.environ.get("VLLM_API_KEY", "").split("\n") if key] or None
    with _refused(spec):
        _load_plugins(args)
        validate_parsed_serve_args(args)
        validate_api_server_args(args)
    return args


@contextmanager
def _refused(spec: PythonGatewaySpec) -> Iterator[None]:
    try:
        yield
    except REFUSALS as error:
        cause = f"listener {spec.name}: vLLM refuses a setting: {reason_of(error)}"
        raise ConfigError(f"{cause}; change its arguments or the engine's") from error


class _Limited(LimitedApp):
    """The listener's limit as vLLM's middleware, which is made by name and told the app alone."""

    limit: ClassVar[InflightLimit]

    def __init__(self, app: App) -> None:
        super().__init__(app, self.limit)


def serve(spec: PythonGatewaySpec, sock: socket.socket) -> None:
    """Serve HTTP on ``sock`` for the engine behind the spec's two addresses, until SIGTERM.

    Waits for the engine's ready message first, without a limit of its own. The process's
    environment must hold what ``nodeserve.gateway.launch`` asks for.

    Raises:
        ConfigError: vLLM refuses the arguments or the model's configuration.
    """
    signal.signal(signal.SIGTERM, _leave)
    # A fork server imported this constant long before our environment said otherwise.
    launcher.NoSignalServer = DrainingServer
    core_client.VLLM_ENGINE_READY_TIMEOUT_S = envs.VLLM_ENGINE_READY_TIMEOUT_S
    args = parse(spec)
    set_ulimit()
    if spec.limit is not None:
        _Limited.limit = inflight_limit(spec.limit, MonotonicClock())
        args.middleware = [*args.middleware, f"{__name__}.{_Limited.__name__}"]
    client = {
        "input_address": spec.input_address,
        "output_address": spec.output_address,
        "client_count": 1,
        "client_index": 0,
    }
    try:
        with _refused(spec):
            uvloop.run(
                run_server_worker(
                    spec.listen_address, sock, args, client_config=client, http=LimitedHttp
                )
            )
    except _Terminated:
        return


def _load_plugins(args: Namespace) -> None:
    if len(args.tool_parser_plugin or "") >= MIN_PLUGIN_PATH:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if len(args.reasoning_parser_plugin or "") >= MIN_PLUGIN_PATH:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)


def _leave(*_: object) -> None:
    raise _Terminated
