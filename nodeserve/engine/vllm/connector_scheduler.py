"""The connector's half in the engine's scheduler: grants leases, and asks for loads.

Runs in the engine's main thread only, between and within steps. vLLM's delayed free is not used:
it keeps the engine stepping once a millisecond and asserts on requests it has forgotten. Instead
a finished prefill leg's blocks get one more reference in the block pool, and the request is over.
"""

import logging
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus

from nodeserve.clock import Clock
from nodeserve.engine.vllm import handoff as handoffs
from nodeserve.engine.vllm import kv_groups
from nodeserve.engine.vllm.connector_messages import (
    Load,
    LoadMetadata,
    LoadReport,
    PoolHandshake,
)
from nodeserve.engine.vllm.handoff import GroupBlocks, Handoff, LoadPart, PoolDescription
from nodeserve.errors import ConfigError, InvariantError, PeerError
from nodeserve.ids import Generation, LeaseId
from nodeserve.kv import layout, page_copy
from nodeserve.kv.layout import NULL_BLOCK
from nodeserve.kv.lease import (
    ClearSlot,
    Command,
    HandoffOffered,
    LeaseBook,
    LeaseReleased,
    PinBlocks,
    PublishSlot,
    TimeElapsed,
    UnpinBlocks,
)
from nodeserve.transfer import shared_memory
from nodeserve.transfer.lease_table import LeaseTable

NUM_SLOTS: Final = 1 << 16
"""More leases than a node has requests; half a MiB, touched only where used."""

_FINISHED: Final = (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectorSettings:
    """What nodeserve tells its connector through ``kv_connector_extra_config``."""

    generation: int
    async_load: bool
    load_at_once_bytes: int
    lease_ttl_s: float
    one_tp: bool
    one_block_size: bool


class SchedulerSide:
    """Leases on our blocks, and loads into them."""

    def __init__(self, settings: ConnectorSettings, config: KVCacheConfig, clock: Clock) -> None:
        """Start without leases and without a block pool; vLLM binds that later.

        Raises:
            ConfigError: The model's KV cannot be handed over.
        """
        kv_groups.require_supported(
            config, async_load=settings.async_load, one_block_size=settings.one_block_size
        )
        self._settings = settings
        self._clock = clock
        self._groups = config.kv_cache_groups
        self._block_sizes = [group.kv_cache_spec.block_size for group in self._groups]
        self._book = LeaseBook(ttl_s=settings.lease_ttl_s, num_slots=NUM_SLOTS)
        self._table = LeaseTable(Generation(settings.generation), NUM_SLOTS)
        self._pool: BlockPool | None = None
        self._descriptions: tuple[PoolDescription, ...] = ()
        self._block_bytes: list[int] = []
        self._handoffs: dict[str, Handoff] = {}
        self._loads: list[Load] = []
        self._is_plain = kv_groups.is_plain(config)
        self._quick: set[str] = set()
        self._quick_bytes = 0
        self._parked: set[str] = set()
        # Requests whose load their own step waited for, with the blocks it filled.
        self._unparked: dict[str, tuple[Request, list[int]]] = {}
        self._num_loads = 0
        self._num_load_failures = 0
        self._load_bytes = 0
        self._load_ms = 0.0

    def bind_block_pool(self, pool: BlockPool) -> None:
        """Take the pool whose reference counts pin leased blocks."""
        self._pool = pool

    def set_pools(self, by_rank: dict[int, PoolHandshake]) -> None:
        """Take where every rank's KV pool lies.

        Raises:
            ConfigError: Pages cannot be divided as the node's other workers would have to.
        """
        for handshake in by_rank.values():
            self._require_divided(handshake.undivided)
        self._descriptions = tuple(by_rank[rank].pool for rank in sorted(by_rank))
        geometry = layout.from_plain(self._descriptions[0].geometry)
        self._block_bytes = [
            page_copy.canonical_block_bytes(geometry, group) for group in range(len(self._groups))
        ]

    @property
    def pools(self) -> tuple[PoolDescription, ...]:
        """Where every rank's KV pool lies, by rank; empty before vLLM has said so."""
        return self._descriptions

    # ------------------------------------------------------------------- loads

    def arrive(self, request: Request) -> None:
        """Note a new request's handoff. One that makes no sense counts as a failed load."""
        self.expire()
        params = request.kv_transfer_params
        if not params or not params.get("do_remote_prefill"):
            return
        try:
            self._handoffs[request.request_id] = handoffs.from_params(
                params, num_tokens=request.num_tokens, num_groups=len(self._groups)
            )
        except PeerError as error:
            self._num_loads += 1
            self._num_load_failures += 1
            _logger.warning("handoff_refused request=%s cause=%s", request.request_id, error)

    def loadable_tokens(self, request: Request, num_computed: int) -> tuple[int, bool]:
        """Return how many tokens a load adds to ``num_computed``, and whether it is parked.

        May be asked often. The last token is always computed here: its logits are needed.
        """
        handoff = self._handoffs.get(request.request_id)
        if handoff is None:
            return 0, False
        num_tokens = self._end_token(handoff, request) - num_computed
        if num_tokens <= 0:
            return 0, False
        is_quick = self._quick_bytes + self._load_bytes_of(num_tokens) <= self._most_at_once
        (self._quick.add if is_quick else self._quick.discard)(request.request_id)
        return num_tokens, not is_quick

    def allocated(self, request: Request, blocks: KVCacheBlocks, num_tokens: int) -> bool:
        """Ask for the load of ``num_tokens`` tokens, now that the request has its blocks.

        A handoff is used once: after a failure or a preemption the prompt is computed here.

        Returns:
            Whether there is a handoff to load them from.
        """
        handoff = self._handoffs.pop(request.request_id, None)
        is_quick = request.request_id in self._quick
        self._quick.discard(request.request_id)
        if handoff is None or num_tokens == 0:
            return False
        end = self._end_token(handoff, request)
        parts = []
        for block_size, ids in zip(self._block_sizes, blocks.get_block_ids(), strict=True):
            first, behind = (end - num_tokens) // block_size, -(-end // block_size)
            parts.append(LoadPart(first, ids[first:behind]))
        if is_quick:
            self._quick_bytes += self._load_bytes_of(num_tokens)
        load = Load(request.request_id, handoff, parts, parked=not is_quick)
        self._num_loads += 1
        self._loads.append(load)
        if load.parked:
            self._parked.add(load.request_id)
        else:
            self._unparked[load.request_id] = (request, parts[0].blocks)
        return True

    def take_metadata(self) -> LoadMetadata:
        """Return what the workers must load; called in every step, so leases expire here too."""
        self.expire()
        metadata = LoadMetadata(self._loads)
        self._loads, self._quick_bytes = [], 0
        return metadata

    def take_output(self, output: KVConnectorOutput, report: LoadReport) -> set[str]:
        """Count what the workers report; return the requests whose parked loads have failed."""
        over = self._parked & (output.finished_recving or set())
        self._parked -= over
        failed = over & (output.failed_recving or set())
        self._num_load_failures += len(failed) + report.unparked_failures
        self._load_bytes += report.num_bytes
        self._load_ms += report.load_ms
        if output.invalid_block_ids:
            # vLLM has put an unparked load's blocks into the prefix cache already. Their owner
            # computes them again, perhaps over several steps: nobody else may hit them meanwhile.
            self.block_pool.evict_blocks(output.invalid_block_ids)
            for request, blocks in self._unparked.values():
                if not output.invalid_block_ids.isdisjoint(blocks):
                    _count_as_computed(request)
        return failed

    # ------------------------------------------------------------------ leases

    @property
    def num_leases(self) -> int:
        """How many leases hold, of which some may be overdue."""
        return self._book.num_granted

    def finish(self, request: Request, block_ids: tuple[list[int], ...]) -> dict[str, Any] | None:
        """Return the handoff of a finished prefill leg, its blocks pinned; None for others."""
        self._handoffs.pop(request.request_id, None)
        self._quick.discard(request.request_id)
        self._unparked.pop(request.request_id, None)
        params = request.kv_transfer_params
        num_tokens = request.num_prompt_tokens
        if (
            not params
            or not params.get("do_remote_decode")
            or request.status not in _FINISHED
            or request.num_computed_tokens < num_tokens
        ):
            return None
        groups = tuple(
            _offered(group, ids, num_tokens)
            for group, ids in zip(self._groups, block_ids, strict=True)
        )
        pinned = tuple(b for group in groups for b in group.blocks if b != NULL_BLOCK)
        commands = self._book.handle(HandoffOffered(pinned), now_s=self._clock.now_s())
        self._carry_out(commands)
        shown = next(command for command in commands if isinstance(command, PublishSlot))
        num_pulled = [-(-(num_tokens - 1) // group.block_size) - group.first for group in groups]
        handoff = Handoff(
            engine=self._settings.generation,
            lease_id=shown.lease_id,
            num_tokens=num_tokens,
            num_bytes=sum(map(operator.mul, num_pulled, self._block_bytes)),
            groups=groups,
            slot=shown.slot,
            table=self._table.handle(),
            pools=self._descriptions,
        )
        return handoffs.to_params(handoff)

    def release(self, lease_ids: Iterable[int]) -> None:
        """End leases; those that ended before are passed over.

        Raises:
            InvalidTransitionError: One was never granted; the others before it have ended.
        """
        now_s = self._clock.now_s()
        for lease_id in lease_ids:
            self._carry_out(self._book.handle(LeaseReleased(LeaseId(lease_id)), now_s=now_s))

    def expire(self) -> None:
        """End the leases whose time is up."""
        self._carry_out(self._book.handle(TimeElapsed(), now_s=self._clock.now_s()))

    def stats(self) -> dict[str, int | float]:
        """Return counts since the start, and how many leases hold now."""
        self.expire()
        return {
            "leased": self._book.num_granted,
            "loads": self._num_loads,
            "load_failures": self._num_load_failures,
            "load_bytes": self._load_bytes,
            "load_ms": self._load_ms,
            "expired": self._book.num_expired,
        }

    def close(self) -> None:
        """Let go of the lease table."""
        self._table.close()

    def _require_divided(self, undivided: dict[str, str]) -> None:
        differing = {
            "heads": (self._settings.one_tp, "tp"),
            "tokens": (self._settings.one_block_size, "block_size"),
        }
        for what, kind in undivided.items():
            is_one, setting = differing[what]
            if not is_one:
                text = (
                    f"KV of the kind {kind!r} cannot be divided by {what}, and the node's workers "
                    f"differ in {setting}; give all of them the same"
                )
                raise ConfigError(text)

    @property
    def _most_at_once(self) -> float:
        """Bytes that a step may load before it runs, rather than beside it.

        Within host memory as much takes a millisecond or two, and a thread that competes with the
        engine's for Python's lock takes several to begin.
        """
        if not self._settings.async_load:
            return math.inf
        is_host = self._descriptions[0].handle.get("transport") == shared_memory.TRANSPORT
        return self._settings.load_at_once_bytes if is_host and self._is_plain else 0

    def _load_bytes_of(self, num_tokens: int) -> int:
        sizes = zip(self._block_sizes, self._block_bytes, strict=True)
        return sum(-(-num_tokens // block_size) * num_bytes for block_size, num_bytes in sizes)

    def _end_token(self, handoff: Handoff, request: Request) -> int:
        return min(handoff.num_tokens, request.num_tokens - 1)

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case PinBlocks(blocks):
                    pool = self.block_pool
                    pool.touch([pool.blocks[block] for block in blocks])
                case PublishSlot(slot, lease_id):
                    self._table.publish(slot, lease_id)
                case ClearSlot(slot):
                    self._table.clear(slot)
                case UnpinBlocks(blocks):
                    pool = self.block_pool
                    # As vLLM frees a request: the last block is the first to be reused.
                    pool.free_blocks([pool.blocks[block] for block in reversed(blocks)])

    @property
    def block_pool(self) -> BlockPool:
        """The engine's block pool, once vLLM has bound it."""
        if self._pool is None:
            raise InvariantError("vLLM has not bound its block pool to the connector")
        return self._pool


def _offered(group: KVCacheGroupSpec, ids: list[int], num_tokens: int) -> GroupBlocks:
    """Return what a decode leg needs of a group, to compute the prompt's last token itself."""
    block_size = group.kv_cache_spec.block_size
    num_blocks = -(-num_tokens // block_size)
    first = min(kv_groups.first_needed_block(group, num_tokens - 1), num_blocks)
    return GroupBlocks(block_size=block_size, first=first, blocks=tuple(ids[first:num_blocks]))


def _count_as_computed(request: Request) -> None:
    """Let a request's statistics say that it computes what it could not load.

    vLLM takes them when it schedules a request, which for an unparked load is before the load.
    """
    if (stats := request.prefill_stats) is not None:
        stats.set(
            num_prompt_tokens=stats.num_prompt_tokens,
            num_local_cached_tokens=stats.num_local_cached_tokens,
            num_external_cached_tokens=0,
        )
