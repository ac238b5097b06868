"""The block manager's process."""

import asyncio
import gc
import logging
import os
import signal
from typing import Any, Final

import uvloop

from nodeserve.block_manager.disk import OpenStore
from nodeserve.block_manager.service import BlockManager, decode_spec, tier_config
from nodeserve.clock import MonotonicClock
from nodeserve.errors import InvariantError
from nodeserve.telemetry.logging import setup
from nodeserve.transfer.disk import open_disk_store
from nodeserve.transfer.disk_store import DiskStore, OnLost
from nodeserve.wire.spawn import BlockManagerSpec, DiskTierSpec

_LOG: Final = logging.getLogger(__name__)

GC_THRESHOLDS: Final = (50_000, 20, 100)
"""A look-up makes one object per key and drops them at once, beside lists of all slots that live
for ever: the collector would run through those and find nothing."""


def run(spec_bytes: bytes, fds: list[int]) -> None:
    """Serve until SIGTERM; ``fds`` are the slot directory's, then the arenas'.

    Raises:
        ConfigError: An address cannot be used, or the memory is not what the spec says.
        PeerError: An address is in use.
        InvariantError: A bug; a successor finds what was READY.
    """
    serve(spec_bytes, fds, open_disk)


def serve(spec_bytes: bytes, fds: list[int], open_store: OpenStore) -> None:
    """Do as ``run``, with ``open_store`` for the disk tier."""
    setup()
    spec = decode_spec(spec_bytes)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    uvloop.run(_serve(spec, fds, open_store))


def open_disk(spec: DiskTierSpec, namespace: bytes, on_lost: OnLost) -> DiskStore:
    """Open the directories of the disk tier; see ``transfer.disk.open_disk_store``."""
    return open_disk_store(spec, namespace, on_lost=on_lost)


async def _serve(spec: BlockManagerSpec, fds: list[int], open_store: OpenStore) -> None:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end(cause: BaseException | None) -> None:
        if not over.done():
            if cause is None:
                over.set_result(None)
            else:
                over.set_exception(cause)

    def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        cause = context.get("exception")
        _LOG.error("block_manager_failed %s", context.get("message"), exc_info=cause)
        end(InvariantError(f"block manager: {cause!r} in a callback; report this bug"))

    # What goes wrong in a callback is a bug: what is in which slot can no longer be trusted.
    loop.set_exception_handler(fail)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, None)
    manager = BlockManager(
        spec, fds, MonotonicClock(), open_store=open_store, config=tier_config(spec)
    )
    serving = asyncio.create_task(manager.run(os.getpid()))
    try:
        await asyncio.wait({serving, over}, return_when=asyncio.FIRST_COMPLETED)
        if over.done():
            over.result()
        else:
            serving.result()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # of a deliberate refusal: its exit code counts
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        manager.close()
