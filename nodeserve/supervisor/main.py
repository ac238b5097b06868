"""Run a node in this process, from its configuration to its exit code."""

import asyncio
import logging

from nodeserve.clock import MonotonicClock
from nodeserve.config.node import NodeConfig
from nodeserve.supervisor.kernel import become_subreaper, name_process
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.supervisor.service import Supervisor, make_runtime

_log = logging.getLogger(__name__)


def run(config: NodeConfig) -> int:
    """Serve until stopped; return 0 after a drain, else the failure's exit code.

    Raises:
        ConfigError: The runtime directory or a listener can't be used.
        PeerError: A live process holds one of the sockets.
    """
    become_subreaper()
    name_process("nodeserve")
    for warning in config.warnings:
        _log.warning("%s", warning)
    runtime = make_runtime(config)
    code = 1
    try:
        # Not uvloop: it keeps SIGCHLD to itself, and nothing here is on a request's path.
        code = asyncio.run(_serve(config, runtime))
    finally:
        runtime.close(keep_logs=code != 0)
    return code


async def _serve(config: NodeConfig, runtime: RuntimeDirectory) -> int:
    return await Supervisor(config, runtime, MonotonicClock()).run()
