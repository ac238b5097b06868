"""A tier desk in this process, over real memory, with answers kept in a list."""

import os

from nodeserve.block_manager.memory import TierMemory, directory_shape
from nodeserve.block_manager.tier_desk import TierDesk
from nodeserve.clock import ManualClock
from nodeserve.errors import PeerError
from nodeserve.kv.host_tier import HostTier, TierConfig
from nodeserve.kv.tier_events import EngineJoined
from nodeserve.transfer.arenas import create_arenas
from nodeserve.transfer.slot_directory import SlotDirectory

ARENA = 1 << 20
NAMESPACE = bytes(range(32))


class Bench:
    """Memory that outlives its desks."""

    def __init__(self) -> None:
        self.arenas = create_arenas(ARENA, ARENA)
        self.memory = TierMemory(self.arenas.fds, ARENA)
        self.shape = self.memory.shape(ARENA // 4)
        self.clock = ManualClock(10.0)
        self.sent = []
        self.unreachable = set()
        self.desks = []

    def _made(self, **more):
        directory = SlotDirectory(self.memory.directory_fd, directory_shape(self.shape, NAMESPACE))
        config = TierConfig(num_slots=self.shape.num_slots, max_writing_share=1.0)
        tier = HostTier(config)
        made = TierDesk(tier, directory, self.shape, self.clock, send=self.send, **more)
        self.desks.append(made)
        return made

    async def successor(self):
        made = self._made()
        await made.adopt()
        made.take_over(frozenset(), ())
        return made

    def desk(self, **more):
        made = self._made(**more)
        made.tell(EngineJoined(1, "w1"))
        made.tell(EngineJoined(2, "w2"))
        return made

    def send(self, generation, answer) -> None:
        if generation in self.unreachable:
            text = f"engine {generation} is not there"
            raise PeerError(text)
        self.sent.append((generation, answer))

    def close(self) -> None:
        for desk in self.desks:
            desk.tier.check()
            desk.close()
        for fd in self.arenas.fds:
            os.close(fd)
