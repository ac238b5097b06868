import asyncio
import logging
import signal
from types import SimpleNamespace

import pytest

from nodeserve.errors import ConfigError, PeerError
from nodeserve.ids import Generation
from nodeserve.lifecycle.process import Phase
from nodeserve.supervisor.children import Child, Exit
from nodeserve.supervisor.exits import Exits, never_born
from nodeserve.wire.control import ChildFailed

WORKER = Child("decode-0", Generation(4), pid=1, pidfd=-1, started_s=0.0)
NO_MODEL = ChildFailed(generation=4, cause="no such model", retryable=False)


class Desk:
    """Exits of one worker whose log ends with its last words."""

    def __init__(self, phase=Phase.READY, sick=None):
        slot = SimpleNamespace(life=SimpleNamespace(phase=phase), sick=sick)
        self.booked = asyncio.Queue()
        self.exits = Exits(
            SimpleNamespace(of_generation=lambda generation: slot),
            SimpleNamespace(log_tail=lambda name, start: ["last words"]),
            self.booked.put_nowait,
        )

    async def next(self):
        async with asyncio.timeout(10):
            return await self.booked.get()


@pytest.mark.parametrize(
    ("phase", "sick", "shown"),
    [
        (Phase.READY, None, "killed by SIGTERM\n    | last words"),
        (Phase.STOPPING, None, "ended, as asked"),
        (Phase.READY, "it is stuck", "killed by us"),
    ],
)
async def test_the_end_of_a_log_is_shown_only_of_a_process_that_died(caplog, phase, sick, shown):
    caplog.set_level(logging.INFO)
    desk = Desk(phase, sick)
    desk.exits.ended(WORKER, Exit(None, signal.SIGTERM))
    assert (await desk.next()).cause == "killed by SIGTERM\n    | last words"
    assert caplog.messages == [f"process_exited name=decode-0 pid=1: {shown}"]


async def test_a_cause_that_was_said_before_or_right_after_the_exit_is_its_cause():
    for said_first in (True, False):
        desk = Desk()
        if said_first:
            desk.exits.said(NO_MODEL)
        desk.exits.ended(WORKER, Exit(78, None))
        if not said_first:
            assert desk.booked.empty()
            await asyncio.sleep(0)
            desk.exits.said(NO_MODEL)
        event = await desk.next()
        assert event.cause.startswith("no such model")
        assert (event.retryable, event.exit_code, desk.exits.causes) == (False, 78, {})


async def test_an_exit_without_a_word_is_booked_all_the_same():
    desk = Desk()
    desk.exits.ended(WORKER, Exit(1, None))
    assert desk.booked.empty()
    assert (await desk.next()).cause.startswith("exited with code 1")


@pytest.mark.parametrize(
    ("error", "retryable", "code", "says"),
    [
        (ConfigError("no such model"), False, 78, "no such model"),
        (PeerError("fork server died"), True, 69, "fork server died"),
        (OSError(24, "Too many open files"), True, 75, "could not be started: Too many open"),
        (KeyError("bug"), True, 70, "bug"),
    ],
)
def test_who_could_not_be_started_ends_with_the_cause(error, retryable, code, says):
    ended = never_born(Generation(4), error)
    assert (ended.generation, ended.retryable, ended.exit_code) == (4, retryable, code)
    assert says in ended.cause
