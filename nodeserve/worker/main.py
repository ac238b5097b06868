"""One worker process: an engine, a heartbeat, and a line to the supervisor."""

import contextlib
import logging
import os
import signal
import types
from collections.abc import Callable
from typing import Final

import msgspec

from nodeserve.bus.channel import BlockingControlClient
from nodeserve.clock import MonotonicClock
from nodeserve.engine.base import EngineFactory
from nodeserve.engine.select import create
from nodeserve.errors import PeerError
from nodeserve.telemetry.logging import setup
from nodeserve.wire.spawn import WorkerSpec
from nodeserve.worker.control import Reporter
from nodeserve.worker.heartbeat import Heartbeat
from nodeserve.worker.step_teller import telling

_LOG: Final = logging.getLogger(__name__)
_DECODER: Final = msgspec.msgpack.Decoder(WorkerSpec)


def run(spec_bytes: bytes, fds: list[int]) -> None:  # noqa: ARG001  the forkserver calls it so
    """Be a worker until SIGTERM; the entry point of its process.

    Args:
        spec_bytes: A WorkerSpec, msgpack.
        fds: None are needed.

    Raises:
        NodeserveError: The engine cannot be had or died; the supervisor was told why.
    """
    setup()
    spec = _DECODER.decode(spec_bytes)
    channel = BlockingControlClient(spec.control_address, str(spec.generation).encode())
    try:
        serve(spec, Reporter(channel, spec), create)
    finally:
        channel.close()


def serve(spec: WorkerSpec, reporter: Reporter, make_engine: EngineFactory) -> None:
    """Load the engine and run it until SIGTERM; on the main thread.

    Raises:
        BaseException: Whatever ended the engine, after it was reported.
    """
    _LOG.info("worker_started worker=%s generation=%d", spec.name, spec.generation)
    try:
        reporter.hello(os.getpid())
        engine = make_engine(spec, reporter.progress)
        # Before it serves there is nothing to end cleanly; loading would not look at a flag.
        _on_sigterm(_leave)
        ready = engine.start()
        _on_sigterm(engine.stop)
        reporter.ready(ready)
        _LOG.info("worker_ready worker=%s generation=%d", spec.name, spec.generation)
        with telling(spec, engine, reporter, MonotonicClock()) as teller:
            beside = _nothing if teller is None else teller.tell
            with Heartbeat(reporter, engine, beside=beside):
                engine.run()
    except Exception as error:
        _LOG.exception("worker_failed worker=%s generation=%d", spec.name, spec.generation)
        with contextlib.suppress(PeerError):
            reporter.failed(error)
        raise
    _LOG.info("worker_ended worker=%s generation=%d", spec.name, spec.generation)


def _on_sigterm(action: Callable[[], None]) -> None:
    def handle(_signal: int, _frame: types.FrameType | None) -> None:
        action()

    signal.signal(signal.SIGTERM, handle)


def _nothing() -> None:
    pass


def _leave() -> None:
    raise SystemExit(0)
