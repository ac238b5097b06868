"""From one engine's KV events to nodeserve's own block hashes."""

from collections.abc import Sequence
from dataclasses import dataclass

from nodeserve.ids import BlockHash
from nodeserve.kv.block_hash import chain, root_seed

EngineHash = bytes | int
"""What an engine calls a block: vLLM's sha256 digest, or its 64-bit form."""

ExtraKeys = Sequence[object] | None
"""What else one block's hash covers; see ``BlockStored.extra_keys`` of vLLM 0.32."""


@dataclass(slots=True)
class _Known:
    """``copies`` counts blocks of equal content: vLLM caches each and removes each."""

    block_hash: BlockHash
    copies: int = 1


class EngineHashMap:
    """One worker's engine hashes and what they are called here.

    Feed it the events of one KV cache group and of the GPU only; others would be counted as
    copies. Bounded: past ``max_blocks`` the blocks stored first are forgotten.
    """

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._known: dict[EngineHash, _Known] = {}
        self.untranslated_blocks = 0
        """Blocks whose parent was never seen: events were lost. Misroutes, nothing worse."""

    def __len__(self) -> int:
        return len(self._known)

    def stored(
        self,
        engine_hashes: Sequence[EngineHash],
        parent: EngineHash | None,
        token_ids: Sequence[int],
        block_size: int,
        *,
        lora_name: str | None = None,
        extra_keys: Sequence[ExtraKeys] | None = None,
    ) -> tuple[BlockHash, ...]:
        """Take in a ``BlockStored`` event and return what to tell the prefix index.

        Empty when the blocks can't be placed in a chain: the parent is unknown, or the event
        skips blocks (sliding windows do), so that tokens and hashes do not pair up.
        """
        num_blocks = len(engine_hashes)
        odd_keys = extra_keys is not None and len(extra_keys) != num_blocks
        if odd_keys or len(token_ids) != num_blocks * block_size:
            self.untranslated_blocks += num_blocks
            return ()
        if parent is None:
            above = root_seed(lora_name, _cache_salt(extra_keys, lora_name))
        else:
            known = self._known.get(parent)
            if known is None:
                self.untranslated_blocks += num_blocks
                return ()
            above = known.block_hash
        tokens = tuple(token_ids)
        ours: list[BlockHash] = []
        for index, engine_hash in enumerate(engine_hashes):
            above = chain(above, tokens[index * block_size : (index + 1) * block_size])
            if extra_keys is not None:
                above = _beside_tokens(above, extra_keys[index])
            ours.append(above)
            self._learn(engine_hash, above)
        return tuple(ours)

    def removed(self, engine_hashes: Sequence[EngineHash]) -> tuple[BlockHash, ...]:
        """Take in a ``BlockRemoved`` event and return what to drop from the prefix index.

        A block of which the engine still has another copy is not among them.
        """
        gone: list[BlockHash] = []
        for engine_hash in engine_hashes:
            known = self._known.get(engine_hash)
            if known is None:
                continue
            known.copies -= 1
            if known.copies == 0:
                del self._known[engine_hash]
                gone.append(known.block_hash)
        return tuple(gone)

    def cleared(self) -> None:
        """Take in an ``AllBlocksCleared`` event."""
        self._known.clear()

    def _learn(self, engine_hash: EngineHash, block_hash: BlockHash) -> None:
        known = self._known.get(engine_hash)
        if known is not None:
            known.copies += 1
            return
        if len(self._known) >= self._max_blocks:
            del self._known[next(iter(self._known))]
        self._known[engine_hash] = _Known(block_hash)


def _cache_salt(extra_keys: Sequence[ExtraKeys] | None, lora_name: str | None) -> str | None:
    """Find the salt: the last string beside the first block that is not its adapter's name."""
    first = extra_keys[0] if extra_keys else None
    texts = [key for key in first or () if isinstance(key, str)]
    if lora_name and texts:
        texts = texts[1:]
    return texts[-1] if texts else None


def _beside_tokens(block_hash: BlockHash, keys: ExtraKeys) -> BlockHash:
    """Mix in images and the like: such prompts come without hashes and must match nothing."""
    others = tuple(repr(key) for key in keys or () if not isinstance(key, str))
    return BlockHash(hash((block_hash, others))) if others else block_hash
