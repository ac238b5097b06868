"""What each worker's prefix cache holds, heard from its engine's KV events."""

import logging
from collections.abc import Callable
from typing import Final

from nodeserve.dispatcher.ports import Ports
from nodeserve.ids import Generation
from nodeserve.kv.engine_hash_map import EngineHashMap
from nodeserve.router.messages import BlocksRemoved, BlocksStored, Event
from nodeserve.wire.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    decode_batch,
)

_LOG: Final = logging.getLogger(__name__)


class KvEventFeed:
    """Subscribes to one worker and turns its events into the router's.

    A gap in the sequence means lost events: all that is known of the worker is forgotten, for
    a block believed cached that is not costs more than one that is not known of.

    Attributes:
        num_rejected: Messages that were not KV events.
        num_gaps: Times that events were lost.
    """

    def __init__(
        self,
        ports: Ports,
        endpoint: str,
        generation: Generation,
        num_blocks: int,
        on_event: Callable[[Event], None],
    ) -> None:
        self.num_rejected = 0
        self.num_gaps = 0
        self._generation = generation
        self._on_event = on_event
        self._hashes = EngineHashMap(max_blocks=num_blocks)
        self._next_sequence: int | None = None
        self._port = ports.kv_events(endpoint, self._on_message)

    def close(self) -> None:
        """Stop listening."""
        self._port.close()

    def _on_message(self, frames: list[bytes]) -> None:
        try:
            sequence, events = decode_batch(frames)
        except ValueError:
            self.num_rejected += 1
            return
        if self._next_sequence not in {None, sequence}:
            self.num_gaps += 1
            _LOG.warning("kv_events_lost generation=%d sequence=%d", self._generation, sequence)
            self._forget()
        self._next_sequence = sequence + 1
        for event in events:
            self._apply(event)

    def _apply(self, event: KvEvent) -> None:
        match event:
            case AllBlocksCleared():
                self._forget()
            case BlockStored() if _is_first_group_on_gpu(event):
                stored = self._hashes.stored(
                    event.block_hashes,
                    event.parent_block_hash,
                    event.token_ids,
                    event.block_size,
                    lora_name=event.lora_name,
                    extra_keys=event.extra_keys,
                )
                if stored:
                    self._on_event(BlocksStored(self._generation, stored))
            case BlockRemoved() if _is_first_group_on_gpu(event):
                removed = self._hashes.removed(event.block_hashes)
                if removed:
                    self._on_event(BlocksRemoved(self._generation, removed))
            case _:
                pass  # another tier's or another group's copy of the same content

    def _forget(self) -> None:
        self._hashes.cleared()
        self._on_event(BlocksRemoved(self._generation, None))


def _is_first_group_on_gpu(event: BlockStored | BlockRemoved) -> bool:
    return event.group_idx in {None, 0} and event.medium in {None, "GPU"}
