"""Ready-made OpenAI clients over a node's Unix socket."""

import os
from pathlib import Path
from typing import Final

import httpx2
from openai import AsyncOpenAI, OpenAI

from nodeserve.config.paths import find_socket

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

    Nothing is connected yet: the first request does that, and raises
    ``openai.APIConnectionError`` where no node answers.

    Args:
        socket: The node's socket. None takes the path where ``nodeserve serve`` puts it, or that of
            the machine's service where this user runs no node.
        api_key: Needed only where the listener has an ``api_key_file``.
        timeout_s: How long one request may take.
    """
    transport = httpx2.HTTPTransport(uds=_path(socket))
    return OpenAI(
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
    transport = httpx2.AsyncHTTPTransport(uds=_path(socket))
    return AsyncOpenAI(
        base_url=_BASE_URL,
        api_key=api_key or "none",
        http_client=httpx2.AsyncClient(transport=transport, timeout=timeout_s),
        timeout=timeout_s,
    )


def _path(socket: str | os.PathLike[str] | None) -> str:
    if socket is None:
        return str(find_socket(os.environ, os.getuid()))
    return str(Path(socket).expanduser().absolute())
