"""The files that make nodeserve a service of systemd, and where they go.

They are data of this package, in ``nodeserve/systemd``: what ``nodeserve install`` writes is what
the tests boot, but for the path of the program.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from nodeserve.errors import ConfigError

SYSUSERS: Final = Path("/etc/sysusers.d/nodeserve.conf")
TMPFILES: Final = Path("/etc/tmpfiles.d/nodeserve.conf")
CONFIG: Final = Path("/etc/nodeserve/node.toml")

_UNITS: Final = Path("/etc/systemd/system")
_DROP_IN: Final = _UNITS / "nodeserve.service.d" / "10-since-254.conf"
_PLACES: Final = {
    "nodeserve.service": _UNITS / "nodeserve.service",
    "nodeserve.socket": _UNITS / "nodeserve.socket",
    "nodeserve@.socket": _UNITS / "nodeserve@.socket",
    "nodeserve-tcp.socket": _UNITS / "nodeserve-tcp.socket",
    "nodeserve-devices.service": _UNITS / "nodeserve-devices.service",
    "nodeserve.sysusers": SYSUSERS,
    "nodeserve.tmpfiles": TMPFILES,
}

_PROGRAM: Final = "/usr/local/bin/nodeserve"
"""What stands in ``ExecStart=`` of the file."""

_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108  named, not used
"""What ``ProtectHome=`` and ``PrivateTmp=`` hide from the service."""


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """One file of the service; ``is_operators`` says that it is kept once it is there."""

    path: Path
    text: str
    is_operators: bool = False

    def installed_text(self) -> str | None:
        """Return what is at ``path`` now; None when nothing is."""
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None


def service_files(
    program: Path, systemd_version: int, *, root: Path = Path("/")
) -> list[ServiceFile]:
    """Return the files for ``program``, an absolute path, below ``root``.

    Systemd before 254 would warn of what it does not know at each start: it gets less.
    """
    if any(character.isspace() or character in "\"'\\%$;" for character in str(program)):
        raise ConfigError(f"nodeserve is at {program}; systemd needs a path without such signs")
    source = files("nodeserve") / "systemd"
    planned = []
    for name, place in _PLACES.items():
        text = (source / name).read_text(encoding="utf-8")
        planned.append(ServiceFile(_below(root, place), text.replace(_PROGRAM, str(program))))
    if systemd_version >= 254:
        text = (source / "since-254.conf").read_text(encoding="utf-8")
        planned.append(ServiceFile(_below(root, _DROP_IN), text))
    example = (source / "node.toml").read_text(encoding="utf-8")
    planned.append(ServiceFile(_below(root, CONFIG), example, is_operators=True))
    return planned


def installed_paths(*, root: Path = Path("/")) -> list[Path]:
    """Return what any release of systemd has been given, the operator's own files left out."""
    return [_below(root, place) for place in (*_PLACES.values(), _DROP_IN)]


def require_visible(places: Iterable[Path]) -> None:
    """Refuse a program that the service's user could not run.

    Raises:
        ConfigError: One of ``places`` is hidden from services, or closed to other users.
    """
    for place in places:
        real = place.resolve()
        if any(real.is_relative_to(hidden) for hidden in _HIDDEN):
            raise ConfigError(
                f"{real} cannot be seen by a service, which has no home directories and "
                "a /tmp of its own; install nodeserve and its Python elsewhere, such as "
                "/opt/nodeserve"
            )
        for folder in (real, *real.parents):
            if not folder.stat().st_mode & stat.S_IXOTH:
                raise ConfigError(
                    f"{folder} is closed to the user that the service runs as; "
                    f"run `chmod o+rx {folder}`, or install nodeserve elsewhere"
                )


def _below(root: Path, place: Path) -> Path:
    return root / place.relative_to("/")
