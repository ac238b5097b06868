"""A throw-away machine with a real systemd, in private namespaces over this machine's own root.

With the variable ``SYSTEMD_TREE`` it is over another root tree, for another release of systemd:
``debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2,libffi8,libssl3t64
trixie TREE`` makes Debian 13's, with systemd 257. Nothing of the machine is left when it ends.
"""

import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx

ROOT: Final = Path(__file__).resolve().parents[2]
BOOT_DEADLINE_S: Final = 60.0
COMMAND_DEADLINE_S: Final = 120.0
UNIT_DEADLINE_S: Final = 60.0
NODESERVE: Final = "/opt/nodeserve/bin/nodeserve"
SOCKET: Final = "/run/nodeserve/api.sock"
NEEDED: Final = ("unshare", "nsenter", "systemctl", "ldconfig", "setpriv", "dbus-daemon", "ip")


class CannotBootError(Exception):
    """This machine has no systemd to boot or may not boot one; says why."""


class Machine:
    """One boot. ``close`` ends it."""

    def __init__(self, models: Path) -> None:
        """Boot, with the folder ``models`` at /srv/models.

        Raises:
            CannotBootError: With the reason.
        """
        _require()
        self._work = Path(tempfile.mkdtemp(prefix="nodeserve-systemd-"))
        self._cgroup = _cgroup2() / f"nodeserve-tests-{secrets.token_hex(4)}"
        self._log = (self._work.parent / f"{self._work.name}.log").open("w+b")
        self._unshare: subprocess.Popen[bytes] | None = None
        try:
            self._cgroup.mkdir()
            self._unshare = self._start(models)
            self.pid = self._booted()
            self.version = int(self.run("systemctl --version").split()[1])
        except OSError as error:
            self.close()
            raise CannotBootError(f"namespaces cannot be made: {error}") from error
        except BaseException:
            self.close()
            raise

    def path(self, inside: str) -> Path:
        """Return where a path of the machine is from here; sockets can be connected to, too."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def run(self, command: str, *, check: bool = True, stdin: str | None = None) -> str:
        """Run a shell command as root in the machine; return what it printed on both streams."""
        enter = ["nsenter", "-t", str(self.pid), "-a", "--", "env", "-C", "/", "-i"]
        ended = subprocess.run(
            [*enter, *_ENVIRONMENT, "/bin/sh", "-c", command],
            check=False,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_DEADLINE_S,
        )
        if check and ended.returncode:
            raise AssertionError(f"{command}: exit code {ended.returncode}\n{ended.stdout}")
        return ended.stdout.strip()

    def write(self, inside: str, text: str) -> None:
        """Write a file of the machine."""
        self.run(f"mkdir -p {Path(inside).parent} && cat > {inside}", stdin=text)

    def show(self, *names: str, unit: str = "nodeserve.service") -> dict[str, str]:
        """Return properties of a unit."""
        wanted = " ".join(f"-p {name}" for name in names)
        lines = self.run(f"systemctl show {unit} {wanted}").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def wait_until(
        self, unit: str = "nodeserve.service", within_s: float = 60, **wanted: str
    ) -> None:
        """Return when a unit's properties have these values."""
        until_s = time.monotonic() + within_s
        while (found := self.show(*wanted, unit=unit)) != wanted:
            if time.monotonic() > until_s:
                raise AssertionError(f"{unit} is {found}, not {wanted}\n{self.journal()}")
            time.sleep(0.05)  # systemd has no cheaper event for a script

    def main_pid(self) -> int:
        """Return the supervisor's pid in the machine; 0 when it does not run."""
        return int(self.show("MainPID")["MainPID"])

    def journal(self, *options: str) -> str:
        """Return what the service has logged."""
        return self.run(f"journalctl --no-pager -u nodeserve.service -o cat {' '.join(options)}")

    def client(self, timeout_s: float = 60) -> httpx.Client:
        """Return an HTTP client of the API socket."""
        transport = httpx.HTTPTransport(uds=str(self.path(SOCKET)))
        return httpx.Client(transport=transport, base_url="http://node", timeout=timeout_s)

    def close(self) -> None:
        """End every process of the machine and remove what was made for it."""
        if self._unshare is not None:
            self._unshare.kill()  # its pid namespace goes with it
            self._unshare.wait()
        killer = self._cgroup / "cgroup.kill"
        if killer.exists():
            killer.write_text("1")
        for _ in range(100):
            for folder in sorted(self._cgroup.rglob("*/"), reverse=True):
                _rmdir(folder)
            if not self._cgroup.exists() or _rmdir(self._cgroup):
                break
            time.sleep(0.05)  # a cgroup is free when its last process has been reaped
        self._log.close()
        Path(self._log.name).unlink(missing_ok=True)
        shutil.rmtree(self._work, ignore_errors=True)

    def _start(self, models: Path) -> "subprocess.Popen[bytes]":
        words = [str(self._cgroup), str(ROOT / "tests/systemd/init.sh"), str(self._work)]
        words += [os.environ.get("SYSTEMD_TREE", "/"), str(ROOT)]
        words += [sys.base_prefix, sysconfig.get_path("platlib"), str(models)]
        join = 'echo 0 > "$1/cgroup.procs"; shift; exec unshare --cgroup bash "$@"'
        leash = ["setpriv", "--pdeathsig", "KILL"]  # whatever becomes of the tests
        namespaces = ["--pid", "--mount", "--ipc", "--uts", "--net", "--fork"]
        return subprocess.Popen(
            [
                *(*leash, "unshare", *namespaces, "--kill-child=SIGKILL"),
                *("bash", "-c", join, "-", *words),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def _booted(self) -> int:
        """Return the pid of its systemd once that has started everything."""
        assert self._unshare is not None
        until_s = time.monotonic() + BOOT_DEADLINE_S
        state = "nothing"
        while time.monotonic() < until_s and self._unshare.poll() is None:
            children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
            for pid in children.read_text().split():
                state = subprocess.run(
                    ["nsenter", "-t", pid, "-a", "systemctl", "is-system-running"],
                    check=False,
                    capture_output=True,
                    text=True,
                ).stdout.strip()
                if state in {"running", "degraded"}:
                    return int(pid)
            time.sleep(0.05)  # there is no event before systemd runs
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        raise CannotBootError(f"systemd did not boot ({state}): {' | '.join(said[-3:])}")


_ENVIRONMENT: Final = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")


def _require() -> None:
    if os.geteuid() != 0:
        raise CannotBootError("booting a systemd takes root")
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if not Path("/lib/systemd/systemd").exists():
        missing.append("/lib/systemd/systemd")
    if missing:
        raise CannotBootError(f"this machine lacks {', '.join(missing)}")


def _cgroup2() -> Path:
    """Return where the second version of cgroups is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind = line.split()[:3]
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return Path(place)
    raise CannotBootError("this machine has no cgroup2 hierarchy that can be written")


def _rmdir(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
