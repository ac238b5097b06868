"""``nodeserve chat``: talk to the node's model in the terminal."""

import sys

import click
import openai
from openai.types.chat import ChatCompletionMessageParam

from nodeserve.cli.answers import (
    Answer,
    bound_of_simulated,
    client_of,
    errors_of,
    finish_answer,
    first_model,
)
from nodeserve.cli.connection import Node, find_node, node_options


@click.command("chat")
@click.argument("message", required=False)
@click.option("--system", metavar="TEXT", help="A system message before the first turn.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of an answer at most."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    metavar="T",
    help="0 always takes the likeliest token.",
)
@click.option(
    "--api-key-file", type=click.Path(), metavar="FILE", help="If the listener asks for a key."
)
@node_options
def command(
    message: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    api_key_file: str | None,
    **place: str | None,
) -> None:
    """Send MESSAGE and show the answer as it comes; without MESSAGE, talk turn by turn.

    MESSAGE may be - for all of standard input. An empty line or Ctrl-D ends the talk, Ctrl-C an
    answer.
    """
    node = find_node(place["socket"], place["runtime_dir"])
    with errors_of(node) as heard:
        client = client_of(node, api_key_file)
        talk = Talk(node, client, first_model(node, client), heard)
        heard.begun = True
        bound = bound_of_simulated(node) if max_tokens is None else None
        if bound is not None:
            hint = f"simulated tokens, at most {bound} of them; --max-tokens asks for more"
            click.secho(hint, dim=True, err=True)
        talk.limits(bound if max_tokens is None else max_tokens, temperature)
        if system is not None:
            talk.messages.append({"role": "system", "content": system})
        if message is not None:
            talk.turn(sys.stdin.read() if message == "-" else message)
            return
        if sys.stdin.isatty():
            hint = f"{talk.model} at {node.socket}; an empty line ends the talk"
            click.secho(hint, dim=True, err=True)
        while said := _ask_user():
            try:
                talk.turn(said)
            except KeyboardInterrupt:
                continue


class Talk:
    """The turns so far, and how the next answer is asked for."""

    def __init__(self, node: Node, client: openai.OpenAI, model: str, heard: Answer) -> None:
        self.node = node
        self.client = client
        self.model = model
        self.messages: list[ChatCompletionMessageParam] = []
        self._heard = heard
        self._max_tokens: int | openai.Omit = openai.omit
        self._temperature: float | openai.Omit = openai.omit

    def limits(self, max_tokens: int | None, temperature: float | None) -> None:
        """Set what is not None for all answers to come."""
        self._max_tokens = openai.omit if max_tokens is None else max_tokens
        self._temperature = openai.omit if temperature is None else temperature

    def turn(self, said: str) -> None:
        """Send one message, print the answer as it comes, and keep both.

        An answer that is interrupted leaves no trace in the talk.

        Raises:
            PeerError: The stream held no answer.
        """
        self.messages.append({"role": "user", "content": said})
        answer = Answer()
        self._heard.request_id = answer.request_id
        try:
            with self.client.chat.completions.create(
                model=self.model,
                messages=self.messages,
                stream=True,
                max_tokens=self._max_tokens,
                extra_headers=answer.headers,
                temperature=self._temperature,
            ) as stream:
                for chunk in stream:
                    for choice in chunk.choices:
                        answer.take(chunk.id, choice.delta.content, choice.finish_reason)
        except BaseException:
            self.messages.pop()
            answer.end_line()
            raise
        self.messages.append({"role": "assistant", "content": "".join(answer.parts)})
        finish_answer(self.node, answer)


def _ask_user() -> str:
    """Return the next message; without its line's end, and empty at the end of input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    try:
        said: str = click.prompt(
            click.style(">", bold=True), default="", prompt_suffix=" ", show_default=False, err=True
        )
    except click.Abort:
        click.echo()
        return ""
    return said
