"""Run a node in this process, from its configuration to its exit code."""

import asyncio
import faulthandler
import logging
import os
from pathlib import Path

from nodeserve.clock import MonotonicClock
from nodeserve.config.node import NodeConfig
from nodeserve.supervisor.activation import Activated, match_listeners, take_sockets
from nodeserve.supervisor.caretaker import take_care
from nodeserve.supervisor.handover import Handover, TakeOver, taken_over, unpack
from nodeserve.supervisor.kernel import allow_many_files, become_subreaper, name_process
from nodeserve.supervisor.notify import notifier_of_this_process
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.supervisor.service import Supervisor

_log = logging.getLogger(__name__)


def run(config: NodeConfig) -> int:
    """Serve until stopped; return 0 after a drain, else the failure's exit code.

    Raises:
        ConfigError: The runtime directory, a listener or a socket of the service manager can't be
            used.
        PeerError: A live process holds one of the sockets.
    """
    faulthandler.enable()  # a watchdog aborts who hangs: the log then shows where
    activated = match_listeners(take_sockets(os.environ, os.getpid()), config.listeners)
    become_subreaper()
    allow_many_files()
    name_process("nodeserve")
    for warning in config.warnings:
        _log.warning("config_warning %s", warning)
    os.umask(0o077)
    runtime = RuntimeDirectory(Path(config.runtime_dir))
    code = 1
    try:
        # Not uvloop: it keeps SIGCHLD to itself, and nothing here is on a request's path.
        code = asyncio.run(_serve(config, runtime, activated))
    finally:
        runtime.close(keep_logs=code != 0)
    return code


def take_over(errand: TakeOver) -> int:
    """Go on with the node that this process has supervised as another program.

    Where that fails the node's processes are kept alive without a supervisor.

    Raises:
        PeerError: The state cannot be read, which the rehearsal would have shown.
    """
    faulthandler.enable()
    state = unpack(errand.state_fd)
    os.close(errand.state_fd)
    taken_over(state)
    become_subreaper()
    name_process("nodeserve")
    runtime = RuntimeDirectory.taken_over(Path(state.config.runtime_dir), state.lock_fd)
    code = 1
    try:
        code = asyncio.run(_go_on(state, runtime))
    finally:
        runtime.close(keep_logs=code != 0)
    return code


async def _go_on(state: Handover, runtime: RuntimeDirectory) -> int:
    try:
        supervisor = Supervisor(
            state.config,
            runtime,
            MonotonicClock(),
            notifier=notifier_of_this_process(),
            activated={},
            kept=state,
        )
        supervisor.go_on(state)
    except Exception:  # noqa: BLE001  whatever it is, the processes of the node must not die of it
        _log.exception("takeover_failed")
        return take_care(state)
    return await supervisor.run()


async def _serve(config: NodeConfig, runtime: RuntimeDirectory, activated: Activated) -> int:
    notifier = notifier_of_this_process()
    supervisor = Supervisor(
        config, runtime, MonotonicClock(), notifier=notifier, activated=activated
    )
    return await supervisor.run()
