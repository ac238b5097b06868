"""What the supervisor sends, also to peers that have to connect again first."""

import asyncio
import logging
from collections import deque
from typing import Final

from nodeserve.bus.channel import ControlServer
from nodeserve.errors import PeerError
from nodeserve.wire import control

_log = logging.getLogger(__name__)

RETRY_S: Final = 0.01
PATIENCE_S: Final = 5.0
"""How long peers may take to connect again: ZeroMQ tries every 0.1 to 0.2 s."""


class Outbox:
    """Sends in order to each peer; after ``be_patient`` also to those that are not there yet."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._until_s = self._loop.time()
        self._waiting: dict[bytes, deque[control.Message]] = {}
        self._retry: asyncio.TimerHandle | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits for its peer."""
        return not self._waiting

    def be_patient(self) -> None:
        """Wait PATIENCE_S for peers from now on: all of them must connect again."""
        self._until_s = self._loop.time() + PATIENCE_S

    def send(self, identity: bytes, message: control.Message) -> None:
        """Send now or, while patience lasts, when the peer is there.

        Raises:
            PeerError: It is not there, or does not read.
        """
        if identity in self._waiting:
            self._waiting[identity].append(message)
            return
        try:
            self._server.send(identity, message)
        except PeerError:
            if self._loop.time() >= self._until_s:
                raise
            self._waiting[identity] = deque([message])
            self._retry = self._retry or self._loop.call_later(RETRY_S, self._try_again)

    def close(self) -> None:
        """Send nothing any more."""
        if self._retry is not None:
            self._retry.cancel()

    def _try_again(self) -> None:
        self._retry = None
        for identity, messages in list(self._waiting.items()):
            try:
                while messages:
                    self._server.send(identity, messages[0])
                    messages.popleft()
            except PeerError as error:
                if self._loop.time() < self._until_s:
                    continue
                _log.warning("peer_unreachable unsent=%d cause=%s", len(messages), error)
            del self._waiting[identity]
        if self._waiting:
            self._retry = self._loop.call_later(RETRY_S, self._try_again)
