"""The gateway side: to each gateway we look like one engine."""

import logging
from collections.abc import Callable
from typing import Any, Final

from nodeserve.dispatcher.ports import Ports
from nodeserve.dispatcher.records import ClientRequest
from nodeserve.errors import PeerError
from nodeserve.ids import Generation
from nodeserve.wire.codec import encode
from nodeserve.wire.control import AttachGateway

_LOG: Final = logging.getLogger(__name__)


class GatewayLink:
    """One attached gateway.

    Attributes:
        name: The process's name.
        listener: The listener's name, which is what its requests are booked under.
        requests: Its requests in flight, by the ids of its wire.
        batch: Outputs to send at the end of this turn; empty between turns. Always the same
            list.
        serving: Whether it has been told that its engine is ready.
        announced: Whether the supervisor has been told so.
        shows_old_gauges: Whether the node's gauges have changed since its last message.
        congested_since_s: Since when it has not taken what it was sent, or None.
    """

    def __init__(
        self,
        ports: Ports,
        attached: AttachGateway,
        on_message: "Callable[[GatewayLink, list[bytes]], None]",
        on_drained: "Callable[[GatewayLink], None]",
    ) -> None:
        self.name = attached.name
        self.listener = attached.listener or attached.name
        self.generation = Generation(attached.generation)
        self.requests: dict[str, ClientRequest] = {}
        self.batch: list[Any] = []
        self._posted: list[list[bytes]] = []
        self.serving = False
        self.announced = False
        self.shows_old_gauges = False
        self.congested_since_s: float | None = None
        self._port = ports.gateway(
            attached, lambda frames: on_message(self, frames), lambda: on_drained(self)
        )

    @property
    def congested(self) -> bool:
        """Whether it has not taken all that it was sent."""
        return self._port.congested

    def say_ready(self, ready: dict[str, Any]) -> None:
        """Send what an engine says when it is ready: from here on clients are served."""
        try:
            self._port.say([encode(ready)])
        except PeerError as error:
            _LOG.error("gateway_not_served gateway=%s cause=%s", self.name, error)
            return
        self.serving = True

    def post(self, message: list[Any], aux: list[bytes]) -> None:
        """Encode one EngineCoreOutputs message now and send it with the next ``push``."""
        self._posted.append([encode(message), *aux])

    @property
    def has_posts(self) -> bool:
        """Whether ``push`` has something to send."""
        return bool(self._posted)

    def push(self) -> None:
        """Send what was posted, or queue it behind others that wait.

        Raises:
            PeerError: The gateway has not read for a long time; the caller ends it.
        """
        posted, self._posted = self._posted, []
        try:
            for frames in posted:
                self._port.send(frames)
        except PeerError as error:
            text = f"gateway {self.name} generation {self.generation}: {error}"
            raise PeerError(text) from error

    def close(self) -> None:
        """Close both sockets and drop what was not sent."""
        self._port.close()
