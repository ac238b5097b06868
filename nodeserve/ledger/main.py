"""The ledger's process."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvloop

from nodeserve.clock import MonotonicClock, unix_now_s
from nodeserve.errors import InvariantError
from nodeserve.ledger.database import Identity, Lock
from nodeserve.ledger.service import LedgerService, decode_spec
from nodeserve.ledger.store import Store
from nodeserve.telemetry.logging import setup
from nodeserve.wire.spawn import LedgerSpec

_LOG: Final = logging.getLogger(__name__)


def run(spec_bytes: bytes, fds: list[int]) -> None:  # noqa: ARG001  (every process gets some)
    """Keep the ledger until SIGTERM; ``fds`` are none.

    Raises:
        ConfigError: An address cannot be used, or the file is no ledger of this release.
        PeerError: An address is in use.
        InvariantError: A bug; what was booked before is as good as it was.
    """
    setup()
    uvloop.run(_serve(decode_spec(spec_bytes)))


def opener(spec: LedgerSpec) -> Callable[[], Store]:
    """Return what locks and opens the ledger's file, again and again until it can be."""
    locks: list[Lock] = []

    def open_store() -> Store:
        path = Path(spec.db_path)
        if not locks:
            locks.append(Lock(path))
        identity = Identity(name=spec.node, zone=spec.zone)
        return Store(path, identity, spec.run_id, now_unix_s=unix_now_s())

    return open_store


async def _serve(spec: LedgerSpec) -> None:
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[None] = loop.create_future()

    def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        cause = context.get("exception")
        _LOG.error("ledger_failed %s", context.get("message"), exc_info=cause)
        if not failed.done():
            text = f"ledger: {cause!r} in a callback; report this bug"
            failed.set_exception(InvariantError(text))

    # What goes wrong in a callback is a bug: what would be booked can no longer be trusted.
    loop.set_exception_handler(fail)
    service = LedgerService(spec, MonotonicClock(), unix_now_s, opener(spec))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    serving = asyncio.create_task(service.run(os.getpid()))
    try:
        await asyncio.wait({serving, failed}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
        serving.result()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # of a deliberate refusal: its exit code counts
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        service.close()
