"""``nodeserve install``: make nodeserve a service of this machine's systemd."""

import difflib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

import nodeserve
from nodeserve.cli.service_files import (
    CONFIG,
    SYSUSERS,
    TMPFILES,
    ServiceFile,
    require_visible,
    service_files,
)
from nodeserve.errors import ConfigError, PeerError

OLDEST_SYSTEMD: Final = 249
"""Its LoadCredential=, ProtectProc= and exit codes are what the unit counts on."""

_STEPS: Final = (
    ("systemd-sysusers", str(SYSUSERS)),
    ("systemd-tmpfiles", "--create", str(TMPFILES)),
    ("systemctl", "daemon-reload"),
)

_NEXT: Final = f"""\
Next:
  name the model in {CONFIG}
  nodeserve serve --config {CONFIG} --check    # what would run
  systemctl enable --now nodeserve.socket nodeserve
  usermod --append --groups nodeserve-users USER    # who may use it
  nodeserve status
"""


@click.command("install")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
def command(*, dry_run: bool) -> None:
    """Install nodeserve as a service of systemd; run it as root.

    It writes the units, makes the user nodeserve and the group nodeserve-users, whose members
    may use the node, and an example of a configuration where there is none. It starts nothing.
    What is as it should be stays as it is, so that it may be run again after an update.
    """
    planned = service_files(find_program(), systemd_version())
    if dry_run:
        for file in planned:
            click.echo(difference(file), nl=False)
        for step in _STEPS:
            click.echo(f"would run: {' '.join(step)}")
        require_visible(own_places())
        return
    if os.geteuid() != 0:
        raise ConfigError("nodeserve install: changes /etc; run it as root, or with --dry-run")
    require_visible(own_places())
    for file in planned:
        click.echo(write(file))
    for step in _STEPS:
        run(step)
    click.echo(_NEXT, nl=False)


def find_program() -> Path:
    """Return the path of the command ``nodeserve`` that belongs to this Python.

    Raises:
        ConfigError: There is none.
    """
    beside = Path(sys.executable).parent / "nodeserve"
    if beside.is_file():
        return beside.absolute()
    found = shutil.which("nodeserve")
    if found is None:
        raise ConfigError(f"nodeserve install: {beside} is missing; install nodeserve with pip")
    return Path(found).absolute()


def own_places() -> list[Path]:
    """Return what the service must be able to read: program, Python and package."""
    return [
        find_program(),
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(nodeserve.__file__).parent,
    ]


def systemd_version() -> int:
    """Return the release of this machine's systemd.

    Raises:
        ConfigError: It is missing or too old.
    """
    try:
        said = subprocess.run(
            ["systemctl", "--version"], check=True, capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"nodeserve install: this machine has no systemd ({error})") from error
    found = re.match(r"systemd (\d+)", said)
    version = int(found[1]) if found else 0
    if version < OLDEST_SYSTEMD:
        raise ConfigError(
            f"nodeserve install: systemd is {version}, the units need {OLDEST_SYSTEMD} or newer"
        )
    return version


def difference(file: ServiceFile) -> str:
    """Return what installing ``file`` would change, for people."""
    old = file.installed_text()
    if old == file.text:
        return f"unchanged: {file.path}\n"
    if old is not None and file.is_operators:
        return f"kept: {file.path}\n"
    lines = difflib.unified_diff(
        [] if old is None else old.splitlines(keepends=True),
        file.text.splitlines(keepends=True),
        "/dev/null" if old is None else str(file.path),
        str(file.path),
    )
    return "".join(lines)


def write(file: ServiceFile) -> str:
    """Put ``file`` in its place, whole or not at all; return what was done."""
    old = file.installed_text()
    if old == file.text:
        return f"unchanged: {file.path}"
    if old is not None and file.is_operators:
        return f"kept: {file.path}"
    file.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = file.path.with_name(f".{file.path.name}.new")
    new.write_text(file.text, encoding="utf-8")
    new.chmod(0o644)
    new.replace(file.path)
    return f"wrote: {file.path}"


def run(step: Sequence[str]) -> None:
    """Run one of systemd's programs.

    Raises:
        PeerError: It failed; what it said is in the message.
    """
    click.echo(f"ran: {' '.join(step)}")
    try:
        subprocess.run(step, check=True, capture_output=True, text=True, timeout=120)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip()
        raise PeerError(f"{' '.join(step)}: ended with code {error.returncode}: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{' '.join(step)}: {error}") from error
