"""What `chat` and `complete` share: a client, streamed text and errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import click
import openai

from nodeserve import connect
from nodeserve.cli.connection import Node, nobody_answers
from nodeserve.cli.footer import describe, find_trace
from nodeserve.config.listeners import read_api_keys
from nodeserve.errors import CapacityError, NodeserveError, PeerError, RequestError


def client_of(node: Node, api_key_file: str | None) -> openai.OpenAI:
    """Return a client of the node; the key is the first of its file."""
    key = read_api_keys(Path(api_key_file).expanduser())[0] if api_key_file else None
    return connect(node.socket, api_key=key)


@contextmanager
def errors_of(node: Node) -> Iterator[None]:
    """Turn the client's errors into ours.

    Raises:
        PeerError: Nobody answers, the answer broke off, or the node failed.
        RequestError: The node refuses the request.
        CapacityError: It has no room for it at present.
    """
    try:
        yield
    except openai.APIConnectionError as error:
        if node.socket.exists():
            raise PeerError(f"nodeserve at {node.socket}: the answer broke off: {error}") from error
        raise nobody_answers(node) from error
    except openai.APIStatusError as error:
        kind = _kind_of_status(error.status_code)
        raise kind(
            f"nodeserve at {node.socket} answered {error.status_code}: {_cause(error)}"
        ) from error
    except openai.APIError as error:
        raise PeerError(f"nodeserve at {node.socket}: {error.message}") from error


def _kind_of_status(code: int) -> type[NodeserveError]:
    if code in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return CapacityError
    return PeerError if code >= HTTPStatus.INTERNAL_SERVER_ERROR else RequestError


def _cause(error: openai.APIStatusError) -> str:
    """Return the node's own words, without the client's preface."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return said if isinstance(said, str) and said else error.message


def first_model(client: openai.OpenAI) -> str:
    """Return the name of the node's model."""
    return client.models.list().data[0].id


def show_footer(node: Node, answer_id: str) -> None:
    """Print the footer of an answer to stderr, dimmed, where the daemon knows the answer."""
    trace = find_trace(node, answer_id)
    if trace is not None:
        click.secho(describe(trace), dim=True, err=True)
