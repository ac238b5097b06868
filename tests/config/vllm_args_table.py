"""Print the table that nodeserve/config/vllm_args.csv holds, from the vLLM that is installed."""

import argparse
import inspect
import sys

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

KINDS = {
    "int": "int",
    "float": "float",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size",
    "parse_dataclass": "json",
    "loads": "json",
    "_parse_type": "json",
    "union_dict_and_str": "json",
}


def kind_of(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "flag"
    name = getattr(action.type, "__name__", "str")
    if name == "_optional_type":
        [inner] = inspect.getclosurevars(action.type).nonlocals.values()
        name = inner.__name__
    return KINDS.get(name, "str")


def aliases_of(action: argparse.Action) -> str:
    own = {f"--{action.dest}".replace("_", "-"), f"--no-{action.dest}".replace("_", "-")}
    return " ".join(option for option in action.option_strings if option not in own)


def rows() -> list[str]:
    found = {}
    for part, owner in (("engine", AsyncEngineArgs), ("frontend", FrontendArgs)):
        for action in owner.add_cli_args(FlexibleArgumentParser())._actions:
            if action.dest in {"help", "model"} or action.dest in found:
                continue
            many = "many" if action.nargs == "+" or "Append" in type(action).__name__ else "one"
            cells = (action.dest, part, kind_of(action), many, aliases_of(action))
            found[action.dest] = ",".join(cells)
    return ["name,part,kind,many,aliases", *sorted(found.values())]


if __name__ == "__main__":
    sys.stdout.write("\n".join(rows()) + "\n")
