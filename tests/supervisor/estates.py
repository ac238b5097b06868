"""A supervisor's parts that start nothing and say nothing."""

from types import SimpleNamespace

from nodeserve.config.node import GatewayKind, Listener, NodeConfig, Worker
from nodeserve.errors import ConfigError
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.rollout import Rollout
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor.children import Kept
from nodeserve.supervisor.estate import Estate
from nodeserve.supervisor.gateways import KeptListener
from nodeserve.supervisor.plan import slot_plans
from nodeserve.wire.kinds import Role

CONFIG = NodeConfig(
    model="/models/m",
    served_model_names=("m",),
    runtime_dir="/run/d",
    listeners=(Listener(name="api", socket="/run/a.sock", gateway=GatewayKind.RUST),),
    workers=(Worker(name="decode-0", role=Role.DECODE),),
    simulate="1xh100-sxm",
)


class FakeServer:
    """Counts who hung up."""

    def __init__(self):
        self.is_readable = False
        self.listening = SimpleNamespace(fileno=lambda: 3)
        self.did = []

    def hang_up(self):
        self.did.append("hung up")

    def pick_up(self):
        self.did.append("picked up")


class FakeOutbox:
    """Keeps what is sent."""

    def __init__(self):
        self.is_empty = True
        self.sent = []

    def be_patient(self):
        pass

    def send(self, identity, message):
        self.sent.append((identity, message))


class FakeChildren:
    """Runs a rehearsal by writing what it would write."""

    def __init__(self):
        self.alive = set()
        self.kept = Kept([], [])
        self.rehearsal = lambda fds: 0
        self.num_rehearsals = 0

    def get(self, generation):
        return generation if generation in self.alive else None

    async def run_program(self, argv, *, environment, fds):
        self.num_rehearsals += 1
        return self.rehearsal(fds)


class FakeGateways:
    """Holds one listener and refuses every new one."""

    kept = (KeptListener("api", (5, 6), "/run/a.sock"),)

    def open(self, listeners, activated):
        if len(listeners) > 1:
            raise ConfigError("socket /run/b.sock: another program listens there")
        return []

    def drop(self, names):
        pass


def an_estate(**parts):
    """Return the estate of a node that serves."""
    life = NodeLife(slot_plans(CONFIG), Patience())
    life.kept.phase = NodePhase.READY
    given = {
        "config": CONFIG,
        "runtime": SimpleNamespace(lock_fd=4),
        "life": life,
        "server": FakeServer(),
        "outbox": FakeOutbox(),
        "children": FakeChildren(),
        "gateways": FakeGateways(),
        "desk": SimpleNamespace(is_answering=False, promises=[]),
        "tier_desk": SimpleNamespace(is_settled=True, gone=[]),
        "changes": SimpleNamespace(rollout=Rollout()),
        "causes": {},
        "run_id": "r1",
        "started_s": 1.0,
        "num_reloads": 2,
    }
    return Estate(**given | parts)
