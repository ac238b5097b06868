"""What the dispatcher tells the supervisor, and what of it still holds."""

from typing import Final, Protocol

from nodeserve.wire import control

_GENERATION_OF_NODE: Final = 0
"""What a report about the whole node is kept under; generations count from 1."""


class Channel(Protocol):
    """The way to the supervisor; ``bus.channel.ControlChannel`` is one."""

    def send(self, message: control.Message) -> None:
        """Send without waiting."""
        ...


class Reports:
    """Sends reports and can say all of them again that nothing has ended since.

    A supervisor that was replaced in between may not have heard the last ones. To hear one twice
    changes nothing for it.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._standing: dict[int, dict[type[control.Message], control.Message]] = {}

    def send(self, message: control.Message) -> None:
        """Tell the supervisor what stays true until ``forget``."""
        generation = getattr(message, "generation", _GENERATION_OF_NODE)
        self._standing.setdefault(generation, {})[type(message)] = message
        self._channel.send(message)

    def forget(self, generation: int) -> None:
        """Take note that a worker or gateway is gone."""
        self._standing.pop(generation, None)

    def say_again(self) -> None:
        """Repeat all that holds, in the order in which it was first said."""
        for reports in self._standing.values():
            for message in reports.values():
                self._channel.send(message)
