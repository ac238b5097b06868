"""A child that becomes another program: vLLM's Rust front end."""

import os
from typing import Final

import msgspec

FIRST_FD: Final = 3
"""The child's fds are numbered from here, as systemd does; argv refers to these numbers."""

_SPARE_FD: Final = 64


class ExecSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The program, its arguments and its whole environment."""

    argv: tuple[str, ...]
    environment: dict[str, str]


def run(spec: bytes, fds: list[int]) -> None:
    """Replace this process by the program, with ``fds`` as 3, 4, 5 and so on."""
    decoded = msgspec.msgpack.decode(spec, type=ExecSpec)
    spare = [os.dup2(fd, _SPARE_FD + place) for place, fd in enumerate(fds)]
    for place, fd in enumerate(spare):
        os.dup2(fd, FIRST_FD + place, inheritable=True)
    for fd in spare:
        os.close(fd)
    os.execve(decoded.argv[0], decoded.argv, decoded.environment)  # noqa: S606  no shell
