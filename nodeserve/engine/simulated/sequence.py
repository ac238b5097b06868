"""One request inside the simulated engine: its tokens, its blocks and its output row."""

from typing import Final

import msgspec

from nodeserve.engine.simulated import wire
from nodeserve.engine.simulated.tokens import CHUNK_TOKENS, Vocabulary, stream_key
from nodeserve.ids import BlockHash
from nodeserve.kv.block_hash import NO_SEED, hash_blocks, root_seed
from nodeserve.wire.engine_core import LISTENER, RESUMED

_NEVER: Final = 1 << 62


class Sequence:
    """A request's progress. The scheduler owns and changes it; nobody else may.

    Attributes:
        prompt: Its token ids.
        tokens: Output tokens known so far; those from ``emitted`` on were not sent yet.
        emitted: How many output tokens were sent, by this engine and before it.
        limit: After how many output tokens it ends.
        due: At how many output tokens the decode loop must look at it again.
        computed: Tokens whose KV is in ``blocks``, kept up while it prefills.
        chunk: Tokens that the step in flight computes.
        blocks: Its KV blocks, in order.
        hashes: Chained hashes of its full blocks, as far as they were needed.
        num_stored: How many of these were entered into the prefix cache.
        row: The output that decode sends each step; ``row_tokens`` is the list inside it.
        handoff: What a decode leg is to pull; None once pulled and for others.
        is_prefill_leg: Whether its blocks stay under a lease when it ends.
        is_resumed: Whether another engine has sent its first output.
        listener: Whose request it is; empty where that is not said.
        num_onboarded: How many of its first blocks came from a tier below.
        is_loading: Whether it waits for blocks of a tier below.
    """

    __slots__ = (
        "_key",
        "_sampling",
        "_stop_token_ids",
        "_vocabulary",
        "blocks",
        "chunk",
        "computed",
        "due",
        "emitted",
        "events",
        "handoff",
        "hashes",
        "is_live",
        "is_loading",
        "is_prefill_leg",
        "is_resumed",
        "limit",
        "listener",
        "num_onboarded",
        "num_preemptions",
        "num_stored",
        "order",
        "pending_load_failure",
        "prefill_stats",
        "priority",
        "prompt",
        "request_id",
        "row",
        "row_tokens",
        "salt",
        "stop_reason",
        "tokens",
    )

    def __init__(
        self, request: wire.Request, vocabulary: Vocabulary, *, max_model_len: int, order: int
    ) -> None:
        """Take a request with a prompt of token ids and sampling parameters.

        Raises:
            ValidationError: msgspec's; what it is to be resumed after are no tokens.
        """
        sampling = request.sampling_params or wire.Sampling()
        self.request_id = request.request_id
        self.prompt = request.prompt_token_ids or []
        self.priority = request.priority
        self.order = order
        self.salt = request.cache_salt
        room = max(1, max_model_len - len(self.prompt))
        self.limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        self.tokens: list[int] = []
        self.emitted = 0
        self.due = _NEVER
        self.computed = 0
        self.chunk = 0
        self.blocks: list[int] = []
        self.hashes: list[BlockHash] = []
        self.num_stored = 0
        self.num_preemptions = 0
        self.num_onboarded = 0
        self.is_loading = False
        self.is_live = True
        self.events: list[dict[str, object]] = []
        self.prefill_stats: dict[str, int] | None = None
        self.stop_reason: int | None = None
        self.row = wire.new_row(self.request_id, 0)
        self.row_tokens: list[int] = self.row[wire.TOKENS]
        self._sampling = sampling
        self._stop_token_ids = frozenset(sampling.stop_token_ids or ())
        self._vocabulary = vocabulary
        self._key = stream_key(self.prompt, sampling.seed)
        extra = sampling.extra_args or {}
        self._read_transfer_params(extra.get("kv_transfer_params"))
        self._restore(msgspec.convert(extra.get(RESUMED) or [], list[int]))

    @property
    def num_tokens(self) -> int:
        """Tokens known to its front end: the prompt and what was sent."""
        return len(self.prompt) + self.emitted

    @property
    def is_complete(self) -> bool:
        """Whether no further token is due: a resumed request may come so."""
        return self.emitted >= self.limit

    @property
    def wants_logprobs(self) -> bool:
        """Whether each output token comes with logprobs."""
        return self._sampling.logprobs is not None

    @property
    def reads_prefix_cache(self) -> bool:
        """Whether cached blocks may stand for computed ones, by vLLM's rule."""
        skip = self._sampling.skip_reading_prefix_cache
        return self._sampling.prompt_logprobs is None if skip is None else not skip

    def extend(self) -> None:
        """Draw the next chunk of output tokens, and end at a stop token among them."""
        first = len(self.tokens)
        self.tokens += self._vocabulary.chunk(self._key, first // CHUNK_TOKENS)
        if self._stop_token_ids:
            start = max(first, self._sampling.min_tokens)
            for index in range(start, min(len(self.tokens), self.limit)):
                if self.tokens[index] in self._stop_token_ids:
                    self.limit = index + 1
                    self.stop_reason = self.tokens[index]
                    return

    def hash_up_to(self, num_blocks: int, block_size: int) -> None:
        """See to it that ``hashes`` has the first ``num_blocks`` blocks, which must be full."""
        known = len(self.hashes)
        if known < num_blocks:
            seed = self.hashes[-1] if known else self._root()
            tokens = self.known_tokens(known * block_size, num_blocks * block_size)
            self.hashes += hash_blocks(tokens, block_size, seed)

    def known_tokens(self, start: int, end: int) -> list[int]:
        """Return the tokens from ``start`` up to ``end``, counted from the prompt's first."""
        num_prompt = len(self.prompt)
        if end <= num_prompt:
            return self.prompt[start:end]
        output = self.tokens[max(0, start - num_prompt) : end - num_prompt]
        return self.prompt[start:] + output if start < num_prompt else output

    def add_logprobs(self, row: wire.Row) -> None:
        """Put the logprobs of the row's one token into it, if they were asked for."""
        count = self._sampling.logprobs
        if count is not None:
            token = row[wire.TOKENS][0]
            wire.put(row, wire.LOGPROBS, wire.sample_logprobs(token, self._others(token, count)))

    def add_prompt_logprobs(self, row: wire.Row) -> None:
        """Put the prompt's logprobs into its first row, if they were asked for."""
        count = self._sampling.prompt_logprobs
        if count is not None and len(self.prompt) > 1:
            common = self._vocabulary.common
            others = common[:count] if count >= 0 else common
            wire.put(row, wire.PROMPT_LOGPROBS, wire.prompt_logprobs(self.prompt[1:], others))

    def add_end(self, row: wire.Row) -> None:
        """Put into its last row why it ended."""
        stopped = self.stop_reason is not None
        wire.put(row, wire.FINISH_REASON, wire.FINISH_STOP if stopped else wire.FINISH_LENGTH)
        wire.put(row, wire.STOP_REASON, self.stop_reason)

    def count_prefill(self, block_size: int, local: int, external: int) -> None:
        """Take note of how many of its tokens were cached here, and elsewhere."""
        num_prompt = len(self.prompt)
        cacheable = num_prompt // block_size * block_size
        self.prefill_stats = {
            "num_prompt_tokens": num_prompt,
            "num_computed_tokens": num_prompt - local - external,
            "num_cached_tokens": local + external,
            "num_local_cached_tokens": local,
            "num_external_cached_tokens": external,
            "num_cache_creation_tokens": max(0, cacheable - local - external),
        }

    def lose_loaded(self, computed: int) -> None:
        """Take note that only the first ``computed`` tokens of what was to be loaded are here."""
        lost, self.computed = self.computed - computed, computed
        if (stats := self.prefill_stats) is not None:
            stats["num_computed_tokens"] += lost
            stats["num_cached_tokens"] -= lost
            stats["num_external_cached_tokens"] -= lost

    def _others(self, token: int, count: int) -> tuple[int, ...]:
        """Return the token ids of the likeliest ``count``: ``token`` is always the first."""
        if count == 0:
            return ()
        common = self._vocabulary.common
        size = len(common) if count < 0 else count
        return (token, *[other for other in common[:size] if other != token][: size - 1])

    def _restore(self, resumed: list[int]) -> None:
        """Continue behind tokens that were sent before; they are recomputed with the prompt."""
        self.is_resumed = bool(resumed)
        self.emitted = len(resumed)
        while len(self.tokens) < len(resumed):
            self.extend()
        self.tokens[: len(resumed)] = resumed
        if resumed and resumed[-1] in self._stop_token_ids:
            self.limit = len(resumed)
            self.stop_reason = resumed[-1]

    def _root(self) -> BlockHash:
        return NO_SEED if self.salt is None else root_seed(None, self.salt)

    def _read_transfer_params(self, params: object) -> None:
        self.handoff: wire.Handoff | None = None
        self.is_prefill_leg = False
        self.pending_load_failure = False
        self.listener = ""
        if not isinstance(params, dict):
            return
        self.listener = str(params.get(LISTENER, ""))
        if params.get("do_remote_decode"):
            self.is_prefill_leg = True
        elif params.get("do_remote_prefill"):
            try:
                handoff = msgspec.convert(params, wire.Handoff)
            except msgspec.ValidationError:
                self.pending_load_failure = True
                return
            if 0 < handoff.num_tokens <= len(self.prompt):
                self.handoff = handoff
            else:
                self.pending_load_failure = True
