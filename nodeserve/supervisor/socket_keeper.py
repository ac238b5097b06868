"""Socket files that somebody deletes are put back.

A Unix socket whose file is gone listens on, but nobody finds it, and once its last name is gone
it can have no other. So each file gets a second name in the runtime directory, from which the
first one is made again: the same socket, whoever is connected, and nobody has to bind anew.
"""

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor.gateways import Gateways
from nodeserve.supervisor.runtime import RuntimeDirectory, kv_events_name
from nodeserve.wire.kinds import ProcessKind

_LOG: Final = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0

_OPEN: Final = (NodePhase.STARTING, NodePhase.READY)


class SecondNames:
    """A second name for each of some socket files, in one folder of their file system."""

    def __init__(self, folder: Path) -> None:
        """Keep the names in ``folder``, which is made when it is needed."""
        self._folder = folder
        self._complained: set[Path] = set()

    def look(self, wanted: Mapping[str, Path]) -> None:
        """Give a second name to who is there and lacks it, and a first one to who lost it.

        Args:
            wanted: Paths of sockets that somebody listens on, by their second name. Who is not
                in it any more loses its second name too.
        """
        if self._folder.is_dir():
            for second in self._folder.iterdir():
                if second.name not in wanted:
                    second.unlink(missing_ok=True)
        for name, path in wanted.items():
            try:
                self._look_at(path, self._folder / name)
            except OSError as error:
                self._complain(path, error)

    def _look_at(self, path: Path, second: Path) -> None:
        try:
            found = path.lstat()
        except FileNotFoundError:
            os.link(second, path)
            _LOG.warning("socket_file_restored path=%s", path)
            return
        if not stat.S_ISSOCK(found.st_mode) or _is_same(found, second):
            return
        second.unlink(missing_ok=True)
        second.parent.mkdir(mode=0o700, exist_ok=True)
        os.link(path, second)
        self._complained.discard(path)

    def _complain(self, path: Path, error: OSError) -> None:
        if path not in self._complained:
            self._complained.add(path)
            _LOG.error("socket_file_unkept path=%s cause=%s", path, error.strerror)


class SocketKeeper:
    """Looks after the files of the node's own sockets; not after the service manager's."""

    def __init__(self, runtime: RuntimeDirectory, life: NodeLife, gateways: Gateways) -> None:
        self._runtime = runtime
        self._life = life
        self._gateways = gateways
        self._names = SecondNames(runtime.second_names)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                self._names.look(self._wanted())
            except OSError as error:  # no file is left to look with
                _LOG.warning("socket_files_unseen cause=%s", error.strerror)
            await asyncio.sleep(LOOK_EVERY_S)

    def _wanted(self) -> dict[str, Path]:
        inside = ["control"]
        for slot in self._life.slots.values():
            if slot.life.phase is Phase.READY:
                match slot.kind:
                    case ProcessKind.DISPATCHER:
                        inside += ["engine-in", "engine-out"]
                    case ProcessKind.WORKER:
                        inside.append(kv_events_name(slot.generation))
                    case _:
                        pass
        wanted = {name: self._runtime.path / f"{name}.sock" for name in inside}
        if self._life.phase in _OPEN:
            wanted |= {f"listener-{name}": path for name, path in self._gateways.paths.items()}
        return wanted


def _is_same(found: os.stat_result, other: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(found, other.lstat())
    return False
