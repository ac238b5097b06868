"""A host tier of a few slots, and what its block manager would say of them."""

from nodeserve.transfer.shared_memory import SharedMemory
from nodeserve.transfer.slot_directory import SlotDirectory, SlotShape, directory_bytes
from nodeserve.wire.kv_tier import KvWelcome

SHAPE = SlotShape(num_slots=4, slot_stride=4096, namespace=b"n" * 32)


class TierSlots:
    """Arenas and directory, which ``close`` takes away."""

    def __init__(self, shape: SlotShape = SHAPE, slots_per_arena: int | None = None) -> None:
        self.shape = shape
        self._slots_per_arena = slots_per_arena or shape.num_slots
        count = -(-shape.num_slots // self._slots_per_arena)
        num_bytes = self._slots_per_arena * shape.slot_stride
        self.arenas = [SharedMemory("arena", num_bytes) for _ in range(count)]
        self.page = SharedMemory("directory", directory_bytes(shape.num_slots))
        self.directory = SlotDirectory(self.page.fd, shape)
        self.welcome = self.welcomed()

    def welcomed(self, generation: int = 1) -> KvWelcome:
        """What a block manager says of it: the first one, or a successor."""
        return KvWelcome(
            generation=generation,
            namespace=self.shape.namespace,
            num_slots=self.shape.num_slots,
            slots_per_arena=self._slots_per_arena,
            slot_stride=self.shape.slot_stride,
            arenas=tuple(arena.handle() for arena in self.arenas),
            directory=self.page.handle(),
        )

    def close(self) -> None:
        self.directory.close()
        for memory in (*self.arenas, self.page):
            memory.close()
