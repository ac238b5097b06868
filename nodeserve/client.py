"""Ready-made OpenAI clients over a node's Unix socket, and what their requests have used."""

import errno
import os
from pathlib import Path
from typing import Any, Final

import httpx2
from openai import APIConnectionError, AsyncOpenAI, OpenAI

from nodeserve.config.paths import find_ledger, find_socket, internals_of
from nodeserve.ledger.response import ResponseEnergy, read_response

_BASE_URL: Final = "http://nodeserve/v1"
"""The host is never resolved: every connection goes to the socket."""

TIMEOUT_S: Final = 600.0
"""A long answer may queue and prefill for minutes; equals the OpenAI client's own default."""


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    api_key: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> OpenAI:
    """Return an ``openai.OpenAI`` whose requests go to a node's Unix socket.

    Nothing is connected yet: the first request does that. Where no node answers it raises
    ``openai.APIConnectionError``, which names the socket and says what to do.

    Args:
        socket: The node's socket. None takes the path where ``nodeserve serve`` puts it, or that of
            the machine's service where this user runs no node.
        api_key: Needed only where the listener has an ``api_key_file``.
        timeout_s: How long one request may take.
    """
    transport = _Transport(_path(socket))
    return _Client(
        base_url=_BASE_URL,
        api_key=api_key or "none",
        http_client=httpx2.Client(transport=transport, timeout=timeout_s),
        timeout=timeout_s,
    )


def connect_async(
    socket: str | os.PathLike[str] | None = None,
    *,
    api_key: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> AsyncOpenAI:
    """Return an ``openai.AsyncOpenAI``; see ``connect``."""
    transport = _AsyncTransport(_path(socket))
    return _AsyncClient(
        base_url=_BASE_URL,
        api_key=api_key or "none",
        http_client=httpx2.AsyncClient(transport=transport, timeout=timeout_s),
        timeout=timeout_s,
    )


def energy_of(
    response_id: str,
    *,
    socket: str | os.PathLike[str] | None = None,
    db: str | os.PathLike[str] | None = None,
) -> ResponseEnergy:
    """Return what a response has used above idle, in mJ, from its node's ledger.

    The ledger is a file, which this reads: on the node's own machine, as a user who may. It is
    provisional until ``is_settled``, some seconds after the response's end.

    Args:
        response_id: The ``id`` that the API answered, or the ``X-Request-Id`` that it was sent.
        socket: The node's socket, as for ``connect``; not needed with ``db``.
        db: The ledger's file. None takes that of the node.

    Raises:
        nodeserve.errors.RequestError: The ledger does not know the response, at least not yet.
        nodeserve.errors.ConfigError: There is no ledger there.
        nodeserve.errors.CapacityError: It cannot be read at present.
    """
    if db is not None:
        return read_response(Path(db), response_id)
    runtime_dir = internals_of(Path(_path(socket)))
    return read_response(find_ledger(os.environ, os.getuid(), runtime_dir), response_id)


def _path(socket: str | os.PathLike[str] | None) -> str:
    if socket is None:
        return str(find_socket(os.environ, os.getuid()))
    return str(Path(socket).expanduser().absolute())


class _Transport(httpx2.HTTPTransport):
    """Says where it looked for a node when none is there."""

    def __init__(self, path: str) -> None:
        super().__init__(uds=path)
        self._path = path

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return super().handle_request(request)
        except httpx2.ConnectError as error:
            raise httpx2.ConnectError(_unreachable(self._path, error)) from error


class _AsyncTransport(httpx2.AsyncHTTPTransport):
    """The same for an ``AsyncOpenAI``."""

    def __init__(self, path: str) -> None:
        super().__init__(uds=path)
        self._path = path

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await super().handle_async_request(request)
        except httpx2.ConnectError as error:
            raise httpx2.ConnectError(_unreachable(self._path, error)) from error


class _Client(OpenAI):
    """Passes on what the transport says, for which OpenAI's has "Connection error." only."""

    def request(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().request(*args, **kwargs)
        except APIConnectionError as error:
            raise _explained(error) from error.__cause__


class _AsyncClient(AsyncOpenAI):
    """The same for an ``AsyncOpenAI``."""

    async def request(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().request(*args, **kwargs)
        except APIConnectionError as error:
            raise _explained(error) from error.__cause__


def _explained(error: APIConnectionError) -> APIConnectionError:
    cause = error.__cause__
    if not isinstance(cause, httpx2.ConnectError):
        return error
    return APIConnectionError(message=str(cause), request=error.request)


def _unreachable(path: str, error: httpx2.ConnectError) -> str:
    if os.strerror(errno.EACCES) in str(error):
        return f"{path} may not be connected to by this user: join the group that its owner names"
    return (
        f"no nodeserve answers at {path} ({error}); start one with `nodeserve serve MODEL`, or "
        "name its socket: nodeserve.connect(SOCKET)"
    )
