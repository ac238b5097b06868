"""The dispatcher's process."""

import asyncio
import gc
import logging
import os
import signal
from typing import Any, Final

import msgspec
import uvloop

from nodeserve.clock import MonotonicClock
from nodeserve.dispatcher.service import Dispatcher
from nodeserve.dispatcher.sockets import Sockets
from nodeserve.errors import InvariantError
from nodeserve.telemetry.logging import setup
from nodeserve.wire.spawn import DispatcherSpec

_LOG: Final = logging.getLogger(__name__)

GC_THRESHOLDS: Final = (20_000, 20, 100)
"""A step of 64 streams makes some 150 lists and drops them at once. With Python's own 700 the
collector would run every few steps over what lives long, and find nothing."""


def run(spec_bytes: bytes, fds: list[int]) -> None:  # noqa: ARG001
    """Serve until SIGTERM; ``fds`` is empty.

    Raises:
        ConfigError: An address cannot be used.
        PeerError: An address is in use.
        InvariantError: A bug; open streams end with their gateway's connection.
    """
    setup()
    spec = msgspec.msgpack.decode(spec_bytes, type=DispatcherSpec)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    uvloop.run(_serve(spec))


async def _serve(spec: DispatcherSpec) -> None:
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
        _LOG.error("dispatcher_failed %s", context.get("message"), exc_info=cause)
        end(InvariantError(f"dispatcher: {cause!r} in a callback; report this bug"))

    # What goes wrong in a callback is a bug: the routing state can no longer be trusted.
    loop.set_exception_handler(fail)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, None)
    dispatcher = Dispatcher(spec, MonotonicClock(), Sockets(spec))
    serving = asyncio.create_task(dispatcher.run(os.getpid()))
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
        dispatcher.close()
