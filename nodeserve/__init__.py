"""Serve large language models on all the GPUs of one node."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openai

    from nodeserve.ledger.response import ResponseEnergy

__all__ = ["connect", "connect_async", "energy_of"]


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    api_key: str | None = None,
    timeout_s: float = 600.0,
) -> "openai.OpenAI":
    """Return an ``openai.OpenAI`` over a node's Unix socket; see ``nodeserve.client.connect``."""
    client: openai.OpenAI = _client().connect(socket, api_key=api_key, timeout_s=timeout_s)
    return client


def connect_async(
    socket: str | os.PathLike[str] | None = None,
    *,
    api_key: str | None = None,
    timeout_s: float = 600.0,
) -> "openai.AsyncOpenAI":
    """Return an ``openai.AsyncOpenAI`` over a node's Unix socket; see ``connect``."""
    client: openai.AsyncOpenAI = _client().connect_async(
        socket, api_key=api_key, timeout_s=timeout_s
    )
    return client


def energy_of(
    response_id: str,
    *,
    socket: str | os.PathLike[str] | None = None,
    db: str | os.PathLike[str] | None = None,
) -> "ResponseEnergy":
    """Return what a response has used above idle; see ``nodeserve.client.energy_of``."""
    found: ResponseEnergy = _client().energy_of(response_id, socket=socket, db=db)
    return found


def _client() -> Any:
    """Import the client when it is first used: openai alone takes half a second."""
    return importlib.import_module("nodeserve.client")
