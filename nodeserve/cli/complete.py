"""``nodeserve complete``: let the node's model continue a text."""

import sys

import click
import openai

from nodeserve.cli.answers import client_of, errors_of, first_model, show_footer
from nodeserve.cli.connection import find_node, node_options
from nodeserve.errors import PeerError


@click.command("complete")
@click.argument("prompt")
@click.option(
    "--max-tokens",
    type=int,
    default=128,
    show_default=True,
    metavar="N",
    help="Length of the answer at most.",
)
@click.option("--temperature", type=float, metavar="T", help="0 always takes the likeliest token.")
@click.option(
    "--api-key-file", type=click.Path(), metavar="FILE", help="If the listener asks for a key."
)
@node_options
def command(
    prompt: str,
    max_tokens: int,
    temperature: float | None,
    api_key_file: str | None,
    **place: str | None,
) -> None:
    """Print how the model continues PROMPT, as it comes. PROMPT may be - for standard input."""
    node = find_node(place["socket"], place["runtime_dir"])
    answer_id = ""
    with errors_of(node):
        client = client_of(node, api_key_file)
        with client.completions.create(
            model=first_model(client),
            prompt=sys.stdin.read() if prompt == "-" else prompt,
            max_tokens=max_tokens,
            temperature=openai.omit if temperature is None else temperature,
            stream=True,
        ) as stream:
            for chunk in stream:
                answer_id = chunk.id
                click.echo(chunk.choices[0].text if chunk.choices else "", nl=False)
    if not answer_id:
        raise PeerError(f"nodeserve at {node.socket}: the stream held no answer")
    click.echo()
    show_footer(node, answer_id)
