"""Turn plain TOML data into the schema's structs, collecting every problem on the way."""

import enum
import re
import types
import typing
from collections.abc import Mapping
from typing import Final, TypeGuard, TypeVar, get_args, get_origin

import msgspec

from nodeserve.config.problems import Problems, nearest

T = TypeVar("T", bound=msgspec.Struct)

_WHERE: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_TOML_TYPES: Final = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


def read_struct(
    cls: type[T], data: Mapping[str, object], path: str, problems: Problems
) -> T | None:
    """Build ``cls`` from ``data``, where ``path`` is the key of ``data`` (empty at the top).

    Returns:
        The struct, with the defaults of keys that were wrong, so that checking can go on;
        None where a required key is missing or wrong. Problems are noted either way.
    """
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            names = ", ".join(f"`{name}`" for name in hints)
            hint = nearest(key, hints) or f"; known here: {names}"
            problems.add(_join(path, key), f"is not a setting{hint}")
    values: dict[str, object] = {}
    for field in msgspec.structs.fields(cls):
        key = _join(path, field.name)
        if field.name not in data:
            if field.required:
                problems.add(key, "is missing")
                return None
            continue
        value = _read_value(hints[field.name], data[field.name], key, problems)
        if value is not _BAD:
            values[field.name] = value
        elif field.required:
            return None
    return cls(**values)


_BAD: Final = object()


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _read_value(hint: object, value: object, key: str, problems: Problems) -> object:
    """Read one key; nested tables by their own fields, so that each problem has its path."""
    table = _table_of(hint)
    if table is not None and isinstance(value, dict):
        read = read_struct(table, value, key, problems)
        return _BAD if read is None else read
    if get_origin(hint) is tuple:
        element = _table_of(get_args(hint)[0])
        if (
            element is not None
            and isinstance(value, list)
            and all(isinstance(v, dict) for v in value)
        ):
            rows = [
                read_struct(element, row, f"{key}[{index}]", problems)
                for index, row in enumerate(value)
            ]
            return tuple(row for row in rows if row is not None)
    try:
        return msgspec.convert(value, hint, strict=True)
    except msgspec.ValidationError as error:
        found = _WHERE.match(str(error))
        where = found["path"] or "" if found else ""
        what = found["what"] if found else str(error)
        problems.add(key + where, f"is {_shown(_at(value, where))}: {_reworded(what, hint)}")
        return _BAD


def _is_table_list(value: object) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _table_of(hint: object) -> type[msgspec.Struct] | None:
    """Return the struct that a hint names, alone or in a union with None."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def _at(value: object, where: str) -> object:
    """Follow an error's path such as ``[1]`` as far as it goes."""
    for step in re.findall(r"\[(\d+)\]", where):
        if not isinstance(value, list) or int(step) >= len(value):
            return value
        value = value[int(step)]
    return value


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."


def _reworded(what: str, hint: object) -> str:
    """Say in the words of TOML what msgspec says in those of JSON."""
    for option in get_args(hint) or (hint,):
        if what.startswith("Invalid enum value") and _is_enum(option):
            return "expected " + " or ".join(str(member.value) for member in option)
    found = re.match(r"Expected `([^`]+)`, got `([^`]+)`$", what)
    if not found:
        return what
    wanted = [_TOML_TYPES.get(name, name) for name in found[1].split(" | ") if name != "null"]
    hint = ": put it in quotes" if found[1] == "str" and found[2] in ("int", "float") else ""
    return f"expected {' or '.join(wanted)}, got {_TOML_TYPES.get(found[2], found[2])}{hint}"


def _is_enum(hint: object) -> TypeGuard[type[enum.Enum]]:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)
