"""The node's listening sockets, and whether the gateways behind them really answer."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeserve.bus.listener import AdoptedListener, TcpListener, UnixListener
from nodeserve.config.node import Listener, NodeConfig
from nodeserve.engine.shared_counts import forget_in_flight
from nodeserve.gateway.launch import counts_path, internal_sockets
from nodeserve.gateway.probe import Health, ProbeResult, probe_tcp, probe_unix
from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import Event, ProcessReady, ProcessSick
from nodeserve.supervisor.activation import Activated
from nodeserve.supervisor.plan import gateway_names
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.wire.control import AttachGateway

FIRST_PROBE_EVERY_S: Final = 0.02
PROBE_EVERY_S: Final = 2.0
PROBE_DEADLINE_S: Final = 5.0
SICK_AFTER_PROBES: Final = 3
BUSY_FACTOR: Final = 3
"""How many more may fail while a gateway computes: vLLM's Python server leaves probes waiting as
long as outputs come faster than it can pass them on. Longer would spare one in an endless loop."""

BUSY_SHARE: Final = 0.5
"""A gateway computes that did so, or waited for a CPU, for this part of a probe."""

INTERNAL_BACKLOG: Final = 1024

AnyListener = UnixListener | TcpListener | AdoptedListener


@dataclass(frozen=True, slots=True)
class KeptListener:
    """A listening socket whose holder becomes another program.

    ``path`` is that of a Unix socket of our own; ``is_managers`` says that the service manager
    made it. New fields have defaults: it travels between releases.
    """

    name: str
    fds: tuple[int, ...]
    path: str | None
    is_managers: bool = False


class Gateways:
    """Holds each listener's socket for the node's whole life and probes what answers on it.

    Several gateways on one socket can't be told apart from outside, so only a gateway that is
    alone on its listener is ever called sick.
    """

    def __init__(
        self,
        config: NodeConfig,
        report: Callable[[Event], None],
        activated: Activated,
        kept: Sequence[KeptListener] = (),
        *,
        busy_s: Callable[[Generation], float] = lambda _: 0.0,
    ) -> None:
        """Take over the listeners of ``kept`` and bind the others but the service manager's.

        Raises:
            ConfigError: A listener's address can't be used.
            PeerError: A live process holds it.
        """
        self._config = config
        self._report = report
        self._busy_s = busy_s
        self._by_name = {
            name: listener for listener in config.listeners for name in gateway_names(listener)
        }
        self._sockets: dict[str, AnyListener] = {}
        self._probing: dict[Generation, asyncio.Task[None]] = {}
        names = {listener.name for listener in config.listeners}
        for held in kept:
            taken = _take_over(held)
            if held.name in names:
                self._sockets[held.name] = taken
            else:  # its gateway answers whom it has accepted
                taken.close()
        self.open(config.listeners, activated)

    def open(self, listeners: Sequence[Listener], activated: Activated) -> list[str]:
        """Bind the listeners that have no socket yet, all or none; return their names.

        Raises:
            ConfigError: A listener's address can't be used.
            PeerError: A live process holds it.
        """
        missing = [listener for listener in listeners if listener.name not in self._sockets]
        opened: dict[str, AnyListener] = {}
        with ExitStack() as bound:
            for listener in missing:
                opened[listener.name] = self._open(listener, activated.get(listener.name))
                bound.callback(opened[listener.name].close)
            bound.pop_all()
        self._sockets.update(opened)
        return list(opened)

    def drop(self, names: Iterable[str]) -> None:
        """Close what ``open`` has opened."""
        for name in names:
            self._sockets.pop(name).close()

    @property
    def names(self) -> AbstractSet[str]:
        """The gateway processes of all listeners."""
        return self._by_name.keys()

    @property
    def kept(self) -> list[KeptListener]:
        """What another Gateways needs to go on; the fds in it must stay open."""
        return [
            KeptListener(
                name=name,
                fds=bound.fds,
                path=str(bound.path) if isinstance(bound, UnixListener) else None,
                is_managers=isinstance(bound, AdoptedListener),
            )
            for name, bound in self._sockets.items()
        ]

    @property
    def paths(self) -> dict[str, Path]:
        """Where the Unix sockets are that this daemon has made, by their listeners' names."""
        return {
            name: held.path
            for name, held in self._sockets.items()
            if isinstance(held, UnixListener)
        }

    def listener_of(self, gateway: str) -> Listener:
        """Return the listener that a gateway process serves."""
        return self._by_name[gateway]

    def http_fd(self, listener: Listener) -> int:
        """Return the fd that clients of a listener connect to."""
        return self._sockets[listener.name].socket.fileno()

    def attach_message(self, name: str, generation: Generation) -> AttachGateway:
        """Return what the dispatcher must know of a gateway."""
        inside = internal_sockets(Path(self._config.runtime_dir), generation)
        return AttachGateway(
            name=name,
            generation=generation,
            input_address=inside.input_address,
            output_address=inside.output_address,
            listener=self._by_name[name].name,
            tenant=self._by_name[name].tenant,
        )

    @contextmanager
    def internal_listeners(
        self, runtime: RuntimeDirectory, generation: Generation
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Make the two sockets that a rust gateway adopts; ours are closed at the end."""
        inside = internal_sockets(runtime.path, generation)
        with (
            socket.socket(socket.AF_UNIX) as inputs,
            socket.socket(socket.AF_UNIX) as outputs,
        ):
            for made, path in ((inputs, inside.input_path), (outputs, inside.output_path)):
                made.bind(str(path))
                made.listen(INTERNAL_BACKLOG)
            yield inputs, outputs

    def begin_probing(self, name: str, generation: Generation) -> None:
        """Report ProcessReady at the first good answer and ProcessSick when they end."""
        listener = self._by_name[name]
        if not self._can_ask(listener):
            return
        self._probing[generation] = asyncio.create_task(self._probe(listener, generation))

    def said_to_serve(self, name: str, generation: Generation) -> None:
        """Take the dispatcher's word for a gateway that cannot be asked from here."""
        if not self._can_ask(self._by_name[name]):
            self._report(ProcessReady(generation))

    def forget(self, name: str, generation: Generation) -> None:
        """Stop probing an incarnation that is gone, and remove what it leaves behind.

        That is its internal sockets, and what it had in flight of its listener's limit: the other
        gateways of the listener would turn requests away for it.
        """
        task = self._probing.pop(generation, None)
        if task is not None:
            task.cancel()
        inside = internal_sockets(Path(self._config.runtime_dir), generation)
        inside.input_path.unlink(missing_ok=True)
        inside.output_path.unlink(missing_ok=True)
        if (listener := self._by_name.get(name)) is not None:
            path = counts_path(Path(self._config.runtime_dir), listener)
            forget_in_flight(path, gateway_names(listener).index(name))

    def stop_accepting(self) -> None:
        """Refuse who connects from now on where that can be; nobody is cut off later."""
        self._stop_probing()
        for held in self._sockets.values():
            held.stop_accepting()

    def close(self) -> None:
        """Close and remove the sockets."""
        self._stop_probing()
        for bound in self._sockets.values():
            bound.close()

    def _can_ask(self, listener: Listener) -> bool:
        held = self._sockets[listener.name]
        return held.reachable if isinstance(held, AdoptedListener) else True

    def _stop_probing(self) -> None:
        for task in self._probing.values():
            task.cancel()
        self._probing.clear()

    @staticmethod
    def _open(listener: Listener, activated: socket.socket | None) -> AnyListener:
        if activated is not None:
            return AdoptedListener(activated)
        if listener.socket is not None:
            return UnixListener(Path(listener.socket), mode=listener.mode, group=listener.group)
        return TcpListener(listener.host or "127.0.0.1", listener.port or 0)

    async def _probe(self, listener: Listener, generation: Generation) -> None:
        result = await self._ask(listener)
        while not result.serving:
            await asyncio.sleep(FIRST_PROBE_EVERY_S)
            result = await self._ask(listener)
        self._report(ProcessReady(generation))
        left = patience = SICK_AFTER_PROBES * BUSY_FACTOR
        while listener.gateways == 1 and left > 0:
            await asyncio.sleep(PROBE_EVERY_S)
            began_s, busy_s = asyncio.get_running_loop().time(), self._busy_s(generation)
            result = await self._ask(listener)
            took_s = asyncio.get_running_loop().time() - began_s
            computes = self._busy_s(generation) - busy_s > BUSY_SHARE * took_s
            answers = result.serving or result.health is Health.UNASKED
            fine = answers or _is_lost(listener)
            left = patience if fine else left - (1 if computes else BUSY_FACTOR)
        if listener.gateways == 1:
            self._report(ProcessSick(generation, result.detail))

    @staticmethod
    async def _ask(listener: Listener) -> ProbeResult:
        if listener.socket is not None:
            return await probe_unix(listener.socket, deadline_s=PROBE_DEADLINE_S)
        return await probe_tcp(
            listener.host or "127.0.0.1", listener.port or 0, deadline_s=PROBE_DEADLINE_S
        )


def _is_lost(listener: Listener) -> bool:
    """Whether nobody can connect because the socket's file is gone: no fault of its gateway."""
    return listener.socket is not None and not Path(listener.socket).exists()


def _take_over(held: KeptListener) -> AnyListener:
    if held.is_managers:
        return AdoptedListener(socket.socket(fileno=held.fds[0]))
    if held.path is None:
        return TcpListener.taken_over(held.fds[0])
    socket_fd, lock_fd = held.fds
    return UnixListener.taken_over(Path(held.path), socket_fd=socket_fd, lock_fd=lock_fd)
