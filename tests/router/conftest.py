from collections.abc import Callable, Iterator

import pytest

from nodeserve.router.messages import Command, Event
from nodeserve.router.router import Router, RouterConfig
from nodeserve.wire.kinds import Role
from tests.router.talking import D, P, attached


class Talk:
    """A router to talk with: an event in, commands out; it is checked after each."""

    def __init__(self, config: RouterConfig) -> None:
        self.router = Router(config)

    def __call__(self, event: Event, now_s: float = 0.0) -> list[Command]:
        commands = self.router.handle(event, now_s=now_s)
        self.router.check()
        return commands


@pytest.fixture
def talk_with() -> Iterator[Callable[[RouterConfig], Talk]]:
    """Make routers that are checked once more after the test."""
    made: list[Talk] = []

    def make(config: RouterConfig) -> Talk:
        made.append(Talk(config))
        return made[-1]

    yield make
    for talk in made:
        talk.router.check()


@pytest.fixture
def talk(talk_with: Callable[[RouterConfig], Talk]) -> Talk:
    return talk_with(RouterConfig())


@pytest.fixture
def pair(talk: Talk) -> Talk:
    """Talk with a prefill and a decode worker."""
    assert talk(attached(P, Role.PREFILL)) == []
    assert talk(attached(D, Role.DECODE)) == []
    return talk
