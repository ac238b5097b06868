"""Builds vLLM's API server once and throws it away, for whoever imports this before it forks.

Half of what a gateway does until it answers is importing routes and computing the help of every
argument. Done here, the children have it; no thread is started and no model is read.
"""

from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser


def build() -> None:
    """Build the server of a model that generates."""
    parser = make_arg_parser(FlexibleArgumentParser())
    build_app(parser.parse_args(["--model", "none", "--enforce-eager"]), ("generate",))


build()
