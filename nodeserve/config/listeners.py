"""Resolve listeners: addresses, permissions, keys and the front end's arguments."""

import grp
import ipaddress
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from nodeserve.config import paths
from nodeserve.config.features import refuse_args
from nodeserve.config.keys import is_credential, key_file, read_api_keys
from nodeserve.config.node import ArgValue, GatewayKind, Listener
from nodeserve.config.problems import COMMAND_LINE, Problems
from nodeserve.config.schema import ListenerTable
from nodeserve.config.vllm_args import check_args, known_args
from nodeserve.errors import ConfigError
from nodeserve.wire.spawn import TenantSpec

_NAME: Final = re.compile(r"^[a-z0-9][a-z0-9-]{0,31}$")
_MODE: Final = re.compile(r"^(0o?)?[0-7]{3}$")
_MAX_PORT: Final = 65_535
_MAX_GATEWAYS: Final = 64
_MAX_PRIORITY: Final = 100


class ListenerDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a listener gets where its table doesn't say.

    ``forced_gateway`` comes from the command line and wins over the tables. ``args`` are
    front-end arguments from the command line, for every listener; they win too. ``environ`` says
    where credentials are. ``first_socket_bytes`` is how long the path of the first Unix socket
    may be.
    """

    socket: str
    gateway: GatewayKind
    forced_gateway: GatewayKind | None = None
    args: Mapping[str, ArgValue] = {}
    environ: Mapping[str, str] = {}
    first_socket_bytes: int = paths.MAX_PATH_BYTES


def resolve_listeners(
    tables: Sequence[tuple[str, ListenerTable]], defaults: ListenerDefaults, problems: Problems
) -> tuple[Listener, ...]:
    """Return the listeners of ``tables``, each with the key that messages call it by."""
    listeners: list[Listener] = []
    for index, (key, table) in enumerate(tables):
        fallback = f"listener-{index}" if index else "api"
        at = problems.of(COMMAND_LINE) if key.startswith("--") else problems
        listeners.append(_resolve(table, key, fallback, defaults, at))
    own = ((key, found.socket) for (key, _), found in zip(tables, listeners, strict=True))
    for first, (key, socket) in enumerate((k, s) for k, s in own if s is not None):
        longest = paths.MAX_PATH_BYTES if first else defaults.first_socket_bytes
        if problem := paths.path_problem(Path(socket), longest):
            at = problems.of(COMMAND_LINE) if key.startswith("--") else problems
            at.add(_key_of(key, "socket"), problem)
    for attribute in ("name", "address"):
        seen: dict[str, str] = {}
        for (key, _), listener in zip(tables, listeners, strict=True):
            value = getattr(listener, attribute)
            if value in seen:
                problems.add(key, f"has the {attribute} {value}, which {seen[value]} has already")
            seen.setdefault(value, key)
    return tuple(listeners)


def _resolve(
    table: ListenerTable,
    key: str,
    fallback_name: str,
    defaults: ListenerDefaults,
    problems: Problems,
) -> Listener:
    name = fallback_name if table.name is None else table.name
    if not _NAME.match(name):
        problems.add(f"{key}.name", f"is {name!r}: use a-z, 0-9 and -, at most 32 of them")
    gateway = defaults.forced_gateway or table.gateway or defaults.gateway
    if not 1 <= table.gateways <= _MAX_GATEWAYS:
        problems.add(f"{key}.gateways", f"is {table.gateways}, expected 1 to {_MAX_GATEWAYS}")
    if table.gateways > 1 and gateway is GatewayKind.RUST:
        problems.add(f"{key}.gateways", f"is {table.gateways}: a rust gateway is always one")
    _check_front_end_args(table.args, f"{key}.args", problems)
    listener = Listener(
        name=name,
        gateway=gateway,
        gateways=table.gateways,
        mode=_mode(table.mode, f"{key}.mode", problems),
        group=_group(table.group, f"{key}.group", problems),
        api_key_file=_key_file(
            table.api_key_file, _key_of(key, "api_key_file"), defaults.environ, problems
        ),
        args={**table.args, **defaults.args},
        tenant=_tenant(table, key, problems),
        kv_host_share=table.kv_host_share,
    )
    if table.listen is None:
        return msgspec.structs.replace(listener, socket=_absolute(table.socket or defaults.socket))
    if table.socket is not None:
        problems.add(key, "sets both `socket` and `listen`: give each its own [[listener]]")
    host, port = _host_and_port(table.listen, _key_of(key, "listen"), problems)
    if not _is_loopback(host) and table.api_key_file is None:
        setting = "--api-key-file" if key.startswith("--") else "api_key_file"
        problems.add(
            _key_of(key, "listen"),
            f"is {table.listen}, which other machines can reach: set `{setting}`, "
            "or listen on 127.0.0.1",
        )
    return msgspec.structs.replace(listener, host=host, port=port)


def _key_of(key: str, setting: str) -> str:
    """Return what messages call a listener's setting: its flag, where it came from one."""
    if key == "--listen" and setting == "api_key_file":
        return "--api-key-file"
    return key if key.startswith("--") else f"{key}.{setting}"


def _tenant(table: ListenerTable, key: str, problems: Problems) -> TenantSpec:
    if abs(table.priority) > _MAX_PRIORITY:
        text = f"is {table.priority}: use -{_MAX_PRIORITY} to {_MAX_PRIORITY}; lower goes first"
        problems.add(f"{key}.priority", text)
    for name in ("weight", "queue_timeout_s"):
        value = getattr(table, name)
        if not value > 0 or (name == "weight" and math.isinf(value)):
            problems.add(f"{key}.{name}", f"is {value:g}: use a number above 0")
    for name, least in (("max_running_requests", 1), ("max_queued_requests", 0)):
        value = getattr(table, name)
        if value is not None and value < least:
            problems.add(f"{key}.{name}", f"is {value}: use {least} or more, or leave it out")
    return TenantSpec(
        priority=table.priority,
        weight=table.weight,
        max_running_requests=table.max_running_requests,
        max_queued_requests=table.max_queued_requests,
        queue_timeout_s=table.queue_timeout_s,
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _mode(text: str, key: str, problems: Problems) -> int:
    if not _MODE.match(text):
        problems.add(key, f'is {text!r}: write permission bits in octal, such as "0660"')
        return 0o660
    return int(text.removeprefix("0o"), 8)


def _group(name: str | None, key: str, problems: Problems) -> str | None:
    if name is not None:
        try:
            grp.getgrnam(name)
        except KeyError:
            problems.add(key, f"is {name}, a group that this machine does not have")
    return name


def _key_file(
    given: str | None, key: str, environ: Mapping[str, str], problems: Problems
) -> str | None:
    """Return a listener's ``api_key_file``: an absolute path, or a credential as it is given."""
    if given is None:
        return None
    if is_credential(given) and not environ.get("CREDENTIALS_DIRECTORY"):
        problems.warn(f"{key} {given} is there only when systemd starts nodeserve")
        return given
    try:
        path = key_file(given, environ)
        read_api_keys(path)
    except ConfigError as error:
        problems.add(key, f"cannot be used: {error}")
        return given
    if is_credential(given):
        return given
    if path.stat().st_mode & 0o007:
        problems.warn(f"{key} {given} is open to every user: run `chmod o= {given}`")
    return str(path)


def _check_front_end_args(args: Mapping[str, ArgValue], key: str, problems: Problems) -> None:
    check_args(args, key, problems)
    refuse_args(args, key, problems)
    known = known_args()
    for name in args:
        if name in known and known[name].part == "engine":
            problems.add(f"{key}.{name}", "is an engine argument: set it in [engine].args")


def _host_and_port(text: str, key: str, problems: Problems) -> tuple[str, int]:
    """Split ``127.0.0.1:8000`` or ``[::1]:8000``."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    number = int(port) if port.isascii() and port.isdigit() else 0
    if colon and host and number > _MAX_PORT:
        problems.add(key, f"is {text!r}: ports are 1 to {_MAX_PORT}, {number} is none")
        return "127.0.0.1", 1
    if not colon or not host or number < 1:
        problems.add(key, f"is {text!r}: write HOST:PORT, such as 127.0.0.1:8000 or [::1]:8000")
        return "127.0.0.1", 1
    return host, number


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
