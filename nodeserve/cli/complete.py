"""``nodeserve complete``: let the node's model continue a text."""

import sys

import click
import openai

from nodeserve.cli.answers import client_of, errors_of, finish_answer, first_model
from nodeserve.cli.connection import find_node, node_options


@click.command("complete")
@click.argument("prompt")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens of the answer at most.",
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
    prompt: str,
    max_tokens: int,
    temperature: float | None,
    api_key_file: str | None,
    **place: str | None,
) -> None:
    """Print how the model continues PROMPT, as it comes. PROMPT may be - for standard input."""
    node = find_node(place["socket"], place["runtime_dir"])
    with errors_of(node) as answer:
        client = client_of(node, api_key_file)
        model = first_model(node, client)
        answer.begun = True
        try:
            with client.completions.create(
                model=model,
                prompt=sys.stdin.read() if prompt == "-" else prompt,
                max_tokens=max_tokens,
                temperature=openai.omit if temperature is None else temperature,
                stream=True,
                extra_headers=answer.headers,
            ) as stream:
                for chunk in stream:
                    for choice in chunk.choices:
                        answer.take(chunk.id, choice.text, choice.finish_reason)
        except BaseException:
            answer.end_line()
            raise
    finish_answer(node, answer)
