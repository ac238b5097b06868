"""vLLM's arguments as nodeserve knows them: names, kinds, and parsing from a command line.

The table comes from vLLM's own parsers, so that a misspelt argument is refused before a worker
spends its start-up time on it; a test compares the two.
"""

import csv
import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Final

import msgspec

from nodeserve.config.features import OWNED
from nodeserve.config.features import option as as_option
from nodeserve.config.node import ArgValue
from nodeserve.config.problems import Problems, nearest

_DECIMAL: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE: Final = re.compile(r"^(\d+(?:\.\d+)?)([kmgtKMGT])$")
_EXPECTED: Final = {
    "flag": "true or false",
    "int": "an integer",
    "size": "an integer such as 8192 or 8k",
    "float": "a number",
    "json": "a JSON object",
    "str": "a string",
}


class VllmArg(msgspec.Struct, frozen=True, kw_only=True):
    """One argument of vLLM.

    Attributes:
        part: ``engine`` or ``frontend``: which of the two takes it.
        kind: flag, int, size (an integer with a unit), float, json or str.
        many: It takes a list of such values.
        aliases: Other options for it, for example ``-q``.
    """

    name: str
    part: str
    kind: str
    many: bool
    aliases: tuple[str, ...]


@functools.cache
def known_args() -> Mapping[str, VllmArg]:
    """Return every argument of the pinned vLLM by its Python name."""
    text = files("nodeserve.config").joinpath("vllm_args.csv").read_text(encoding="utf-8")
    return {
        row["name"]: VllmArg(
            name=row["name"],
            part=row["part"],
            kind=row["kind"],
            many=row["many"] == "many",
            aliases=tuple(row["aliases"].split()),
        )
        for row in csv.DictReader(text.splitlines())
    }


def check_args(args: Mapping[str, ArgValue], path: str, problems: Problems) -> None:
    """Note names that vLLM does not have and values that it can't take; ``path`` is their key."""
    known = known_args()
    for name, value in args.items():
        key = f"{path}.{name}"
        arg = known.get(name)
        if arg is None and name not in OWNED:
            hint = nearest(name.replace("-", "_"), known)
            problems.add(key, f"is not an argument of vLLM{hint}")
        elif arg is not None and not _fits(arg, value):
            wanted = ("a list of " if arg.many else "") + _EXPECTED[arg.kind]
            problems.add(key, f"is {value!r}: vLLM expects {wanted}")


def _fits(arg: VllmArg, value: object) -> bool:
    if value is None:
        return True
    if arg.many:
        single = VllmArg(name=arg.name, part=arg.part, kind=arg.kind, many=False, aliases=())
        return isinstance(value, list) and all(_fits(single, item) for item in value)
    match arg.kind:
        case "flag":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "size":
            return value == "auto" or (isinstance(value, int) and not isinstance(value, bool))
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "json":
            return isinstance(value, dict | list | str)
        case _:
            return isinstance(value, str)


def parse_command_line(tokens: Sequence[str], problems: Problems) -> dict[str, ArgValue]:
    """Parse what follows ``--``: vLLM's own options, by Python name.

    ``--max-model-len 8k``, ``--max-model-len=8192``, ``--enforce-eager``, ``--no-...``,
    JSON values, lists of words and nested keys (``--compilation-config.mode 3``) are
    understood as vLLM understands them. Unknown options and bad values are noted.
    """
    parsed: dict[str, ArgValue] = {}
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        words: list[str] = []
        option, equals, inline = token.partition("=")
        if equals:
            words.append(inline)
        while position < len(tokens) and not _is_option(tokens[position]) and not equals:
            words.append(tokens[position])
            position += 1
        _take_option(option, words, parsed, problems)
    return parsed


def _is_option(token: str) -> bool:
    return bool(re.match(r"^--?[A-Za-z]", token))


def _take_option(
    option: str, words: list[str], parsed: dict[str, ArgValue], problems: Problems
) -> None:
    """Note one option with the words that follow it."""
    head, _, nested = option.partition(".")
    arg, negated = _find(head)
    owned = OWNED.get(head[2:].replace("-", "_"))
    if arg is None and owned is not None:
        problems.add(f"`{option}`", f"is set by nodeserve: {owned}")
        return
    if arg is None:
        known = [as_option(name) for name in known_args()]
        problems.add(f"`{option}`", f"is not an argument of vLLM{nearest(head, known)}")
        return
    if arg.kind == "flag":
        if words:
            problems.add(f"`{option}`", f"takes no value, but `{words[0]}` follows it")
        parsed[arg.name] = not negated
        return
    if not words:
        problems.add(f"`{option}`", f"needs a value: {_EXPECTED[arg.kind]}")
        return
    if not arg.many and len(words) > 1:
        problems.add(f"`{option}`", f"takes one value, but {len(words)} follow: {' '.join(words)}")
        return
    if nested:
        _nest(parsed, arg.name, nested.split("."), _guess(words[0]))
        return
    try:
        values = [_value(arg, word) for word in words]
    except ValueError:
        shown = " ".join(words)
        problems.add(f"`{option}`", f"is `{shown}`: vLLM expects {_EXPECTED[arg.kind]}")
        return
    earlier = parsed.get(arg.name)
    if arg.many:
        parsed[arg.name] = [*(earlier if isinstance(earlier, list) else []), *values]
    else:
        parsed[arg.name] = values[0]


def _find(option: str) -> tuple[VllmArg | None, bool]:
    """Return the argument of an option, and whether the option says no."""
    known = known_args()
    if not option.startswith("--"):
        return next((arg for arg in known.values() if option in arg.aliases), None), False
    name = option[2:].replace("-", "_")
    if name in known:
        return known[name], False
    positive = known.get(name.removeprefix("no_"))
    if name.startswith("no_") and positive is not None and positive.kind == "flag":
        return positive, True
    return next((arg for arg in known.values() if option in arg.aliases), None), False


def _value(arg: VllmArg, word: str) -> ArgValue:
    match arg.kind:
        case "int":
            return int(word)
        case "float":
            return float(word)
        case "size":
            return word if word == "auto" else _size(word)
        case "json":
            return _json(word)
        case _:
            return word


def _size(word: str) -> int:
    """Read a size as vLLM does: ``8k`` is 8,000 and ``8K`` is 8,192."""
    found = _SIZE.match(word)
    if found is None:
        return int(word)
    unit = _BINARY.get(found[2]) or _DECIMAL[found[2]]
    return int(float(found[1]) * unit)


def _json(word: str) -> ArgValue:
    if not word.startswith(("{", "[")):
        return word
    read: ArgValue = json.loads(word)
    return read


def _guess(word: str) -> object:
    """Read a nested value: JSON where it is JSON, else the word itself."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def _nest(parsed: dict[str, ArgValue], name: str, keys: list[str], value: object) -> None:
    table = parsed.get(name)
    if not isinstance(table, dict):
        table = {}
        parsed[name] = table
    for key in keys[:-1]:
        inner = table.get(key)
        if not isinstance(inner, dict):
            inner = {}
            table[key] = inner
        table = inner
    table[keys[-1]] = value


def split_parts(args: Mapping[str, ArgValue]) -> tuple[dict[str, ArgValue], dict[str, ArgValue]]:
    """Return the arguments of the engine and those of the front end, in this order."""
    known = known_args()
    engine = {k: v for k, v in args.items() if k not in known or known[k].part == "engine"}
    return engine, {k: v for k, v in args.items() if k not in engine}


def to_command_line(args: Mapping[str, ArgValue]) -> tuple[str, ...]:
    """Write arguments as vLLM's own command line takes them; None leaves one out."""
    words: list[str] = []
    for name, value in args.items():
        option = as_option(name)
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(option if value else "--no-" + option[2:])
        elif isinstance(value, list) and name in known_args() and known_args()[name].many:
            words += [option, *(str(item) for item in value)]
        elif isinstance(value, dict | list):
            words += [option, json.dumps(value)]
        else:
            words += [option, str(value)]
    return tuple(words)
