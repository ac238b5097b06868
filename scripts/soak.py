"""Serve a mixed load from simulated engines while processes die, and balance the books.

Clients stream, wait, and leave in the middle; workers, gateway and dispatcher are killed and
stopped, workers drained, restarted and given other roles. Every token is held against the answer
of the undisturbed node. In the end requests asked = answered + refused + left + cut, nothing is
lost, wrong or hung, and no process, descriptor, shared memory or file is left.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import click
import uvloop
from bench_control_plane import describe_machine, first_answer, running
from bench_faults import wait_gone
from soak_clients import Clients, Outcome, Record, questions

from nodeserve.bus.channel import BlockingControlClient
from nodeserve.errors import NodeserveError
from nodeserve.lifecycle.restart import RestartPolicy
from nodeserve.wire import control
from nodeserve.wire.control import StatusReply
from nodeserve.wire.kinds import ProcessKind, Role
from nodeserve.wire.status import ProcessStatus

DEADLINE_S: Final = 60.0
FRONT: Final = (ProcessKind.GATEWAY, ProcessKind.DISPATCHER)
MAX_GROWTH_MIB: Final = 48
"""Resident memory that a process may gain over the soak: allocators keep what a peak took."""

BAD: Final = (Outcome.LOST, Outcome.WRONG, Outcome.HUNG)


class Operator:
    """Who looks at the node and hurts it."""

    def __init__(self, socket: Path) -> None:
        self._control = BlockingControlClient(f"ipc://{socket}.d/control.sock", b"c-soak")

    def status(self) -> StatusReply:
        """Return the node's status."""
        return cast("StatusReply", self._control.request(control.StatusRequest(), DEADLINE_S))

    def tell(self, message: control.Message) -> bool:
        """Give a command; False when the node would not do it now."""
        reply = self._control.request(message, DEADLINE_S)
        return isinstance(reply, control.CommandReply) and reply.error is None

    def process(self, name: str) -> ProcessStatus:
        """Return one process."""
        return next(found for found in self.status().processes if found.name == name)

    def ready(self, kinds: tuple[ProcessKind, ...]) -> list[ProcessStatus]:
        """Return the processes of some kinds that serve."""
        found = self.status().processes
        return [each for each in found if each.kind in kinds and each.state == "ready"]

    def wait_whole(self, within_s: float = DEADLINE_S) -> bool:
        """Wait until every process serves again; workers that died too often are started."""
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s:
            status = self.status()
            if status.state == "ready":
                return True
            for process in status.processes:
                if process.kind is ProcessKind.WORKER and process.state in {"backoff", "failed"}:
                    self.tell(control.RestartRequest(worker=process.name))
            time.sleep(0.02)  # status has no event to wait for
        return False

    def close(self) -> None:
        """Close the control socket."""
        self._control.close()


class Faults:
    """What is done to the node, one thing after another."""

    def __init__(self, operator: Operator, record: Record, seed: int) -> None:
        self._operator = operator
        self._record = record
        self._chance = random.Random(seed)
        self.made: Counter[str] = Counter()
        self.not_whole: list[str] = []
        self._deaths_s: defaultdict[str, list[float]] = defaultdict(list)

    def one(self) -> None:
        """Do something to the node and wait until it is whole again."""
        kinds: list[Callable[[], str | None]] = [
            *([lambda: self._strike((ProcessKind.WORKER,), signal.SIGKILL)] * 4),
            *([lambda: self._strike((ProcessKind.WORKER,), signal.SIGSTOP)] * 3),
            lambda: self._strike(FRONT, signal.SIGKILL),
            lambda: self._strike(FRONT, signal.SIGSTOP),
            *([self._restart] * 2),
            *([self._change_role] * 2),
        ]
        done = self._chance.choice(kinds)()
        if done is None:
            return
        self.made[done] += 1
        if not self._operator.wait_whole():
            self.not_whole.append(done)

    def _may_die(self, process: ProcessStatus) -> bool:
        """Whether a process comes back by itself: operators start workers, and nothing else."""
        policy, deaths_s = RestartPolicy(), self._deaths_s[process.name]
        recent = sum(at_s > time.monotonic() - policy.window_s for at_s in deaths_s)
        return process.kind not in FRONT or recent < policy.max_deaths

    def _strike(self, kinds: tuple[ProcessKind, ...], number: signal.Signals) -> str | None:
        found = [each for each in self._operator.ready(kinds) if self._may_die(each)]
        if not found:
            return None
        process = self._chance.choice(found)
        if process.pid is None:
            return None
        self._deaths_s[process.name].append(time.monotonic())
        with contextlib.ExitStack() as stack:
            if process.kind in FRONT:
                stack.enter_context(self._record.front_is_away())
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
            wait_gone(process.pid)
            if process.kind in FRONT:
                self._operator.wait_whole()
        return f"{process.kind} {number.name}"

    def _restart(self) -> str | None:
        if not (found := self._operator.ready((ProcessKind.WORKER,))):
            return None
        name = self._chance.choice(found).name
        now = self._chance.random() < 0.5
        done = self._operator.tell(control.RestartRequest(worker=name, immediately=now))
        return ("restart --now" if now else "restart") if done else None

    def _change_role(self) -> str | None:
        if not (found := self._operator.ready((ProcessKind.WORKER,))):
            return None
        worker = self._chance.choice(found)
        role = self._chance.choice([Role.PREFILL, Role.DECODE, Role.AGGREGATED])
        others = [each.role for each in found if each.name != worker.name]
        can_decode = any(each in {Role.DECODE, Role.AGGREGATED} for each in [role, *others])
        can_prefill = any(each in {Role.PREFILL, Role.AGGREGATED} for each in [role, *others])
        if not (can_decode and can_prefill):
            return None
        done = self._operator.tell(control.RoleRequest(worker=worker.name, role=role))
        return "role" if done else None


def descriptors(pid: int) -> int:
    """Return how many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_mib(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def shared_memory() -> set[str]:
    """Return what lies in shared memory."""
    return {path.name for path in Path("/dev/shm").iterdir()}  # noqa: S108  (the place looked at)


async def soak(
    socket: Path, *, minutes: float, clients: int, seed: int, every_s: float
) -> tuple[Record, Faults, dict[str, str]]:
    """Run the load and the faults; return what clients saw, what was done, and what leaks."""
    operator = Operator(socket)
    record = Record()
    load = Clients(socket, questions(40, seed), record)
    await load.learn()
    faults = Faults(operator, record, seed)
    supervisor = operator.process("supervisor").pid or 0
    before = descriptors(supervisor), resident_mib(supervisor)
    until_s = time.monotonic() + minutes * 60
    async with asyncio.TaskGroup() as tasks:
        for number in range(clients):
            tasks.create_task(load.ask_on(number, seed))
        while time.monotonic() < until_s:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(faults.one)
            print(f"\r{record.asked} requests, {faults.made.total()} faults ", end="", flush=True)
        load.over.set()
    print()
    leaks = {}
    if (left := operator.status().requests) and left.running_requests + left.queued_requests:
        leaks["requests"] = f"{left.running_requests} running, {left.queued_requests} queued"
    await asyncio.to_thread(operator.wait_whole)
    after = descriptors(supervisor), resident_mib(supervisor)
    if after[0] > before[0]:
        leaks["descriptors of the supervisor"] = f"{before[0]} -> {after[0]}"
    if after[1] - before[1] > MAX_GROWTH_MIB:
        leaks["memory of the supervisor"] = f"{before[1]:.0f} -> {after[1]:.0f} MiB"
    print(
        f"supervisor: {before[0]} -> {after[0]} descriptors, {before[1]:.0f} -> {after[1]:.0f} MiB"
    )
    operator.close()
    return record, faults, leaks


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--clients", default=16, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--every", "every_s", default=1.0, show_default=True, help="Seconds between faults.")
@click.option("--speedup", default=2.0, show_default=True, help="Of the simulated engines.")
def main(
    *, model: Path, minutes: float, clients: int, seed: int, every_s: float, speedup: float
) -> None:
    """Soak a node with MODEL, a directory with a config and a tokenizer; 1 if the books are off."""
    print(f"{describe_machine()}; {clients} clients, {minutes:g} minutes, seed {seed}")
    shared_before = shared_memory()
    with tempfile.TemporaryDirectory(prefix="ns-soak-") as made:
        socket, log = Path(made) / "n.sock", Path(made) / "log"
        argv = [sys.executable, "-m", "nodeserve.cli.main", "serve", f"--config={made}/node.toml"]
        Path(made, "node.toml").write_text(
            f'model = "{model}"\nserved_model_name = "soak"\nsocket = "{socket}"\n'
            f'[simulate]\nsystem = "8xh100-sxm"\nspeedup = {speedup}\n'
        )
        with running(argv, log) as process:
            first_answer(str(socket), "soak", process, log)
            record, faults, leaks = uvloop.run(
                soak(socket, minutes=minutes, clients=clients, seed=seed, every_s=every_s)
            )
            pids = children(process.pid)
            process.send_signal(signal.SIGTERM)
            code = process.wait(DEADLINE_S)
            if code:
                leaks["exit code of the daemon"] = str(code)
            if left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
                leaks["processes"] = str(left)
        if rest := [path.name for path in Path(made).glob("n.sock*")]:
            leaks["files"] = str(rest)
    if more := shared_memory() - shared_before:
        leaks["shared memory"] = str(sorted(more))
    sys.exit(balance(record, faults, leaks))


def balance(record: Record, faults: Faults, leaks: dict[str, str]) -> int:
    """Print the books; return 1 if they are off."""
    print(f"\n{faults.made.total()} faults:")
    for name, number in sorted(faults.made.items()):
        print(f"  {number:6}  {name}")
    print(f"{record.asked} requests, {record.tokens} tokens checked:")
    for outcome in Outcome:
        print(f"  {record.outcomes[outcome]:6}  {outcome}")
    print(f"longest request {record.longest_s:.2f} s; leaks: {leaks or 'none'}")
    for story in record.stories[:20]:
        print("  " + story)
    for fault in faults.not_whole:
        print(f"  not whole again within {DEADLINE_S:g} s after: {fault}")
    bad = sum(record.outcomes[outcome] for outcome in BAD)
    return 1 if bad or leaks or faults.not_whole else 0


if __name__ == "__main__":
    try:
        main()
    except NodeserveError as error:
        sys.exit(f"soak: {error}")
