"""What the step time of a model depends on, read from its ``config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from nodeserve.errors import ConfigError

_BYTES_PER_WEIGHT: Final[Mapping[str, float]] = {"fp8": 1.0, "mxfp4": 4.25 / 8, "nvfp4": 4.5 / 8}
"""Including the block scales: 8 bits per 32 weights for MXFP4, per 16 for NVFP4."""

_BYTES_PER_FLOAT: Final[Mapping[str, int]] = {"float32": 4, "float": 4}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one decoder-only transformer.

    Parameters are counted from the shapes, with gated feed-forward layers: right to a few per
    cent for Llama, Qwen, Mistral and Mixtral shapes, a guess for others. Models that compress
    their KV (MLA) are counted as if they did not.

    Attributes:
        dense_params: Parameters that every token reads, embeddings included.
        expert_params: Parameters of all routed experts together; 0 in a dense model.
        bytes_per_weight: Below 2 where the weights are quantised.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    dense_params: int
    expert_params: int
    num_experts: int
    experts_per_token: int
    bytes_per_weight: float
    special_token_ids: tuple[int, ...]

    @property
    def active_params(self) -> int:
        """Parameters that take part in computing one token."""
        if self.num_experts == 0:
            return self.dense_params
        return self.dense_params + self.expert_params * self.experts_per_token // self.num_experts

    @property
    def weight_bytes(self) -> int:
        """Resident bytes of all weights."""
        return int((self.dense_params + self.expert_params) * self.bytes_per_weight)

    def kv_bytes_per_token(self, tp: int, bytes_per_value: int) -> int:
        """Return KV bytes of one token over all layers and ranks; few KV heads are replicated."""
        heads = max(self.num_kv_heads, tp)
        return 2 * self.num_layers * heads * self.head_dim * bytes_per_value


def parse_model_shape(config: Mapping[str, object]) -> ModelShape:
    """Return the shape in a Hugging Face ``config.json``, or in its ``text_config``.

    Raises:
        ConfigError: A size is missing or is not a positive whole number.
    """
    nested = config.get("text_config")
    text = {**config, **cast("Mapping[str, object]", nested)} if nested else config
    hidden = _size(text, "hidden_size")
    heads = _size(text, "num_attention_heads")
    head_dim = _size(text, "head_dim", default=max(1, hidden // heads))
    kv_heads = _size(text, "num_key_value_heads", default=heads)
    layers = _size(text, "num_hidden_layers")
    vocab = _size(text, "vocab_size")
    experts = _first_size(text, ("num_local_experts", "num_experts", "n_routed_experts"))
    intermediate = _size(text, "intermediate_size", default=4 * hidden)
    expert_width = _size(text, "moe_intermediate_size", default=intermediate)
    embeddings = vocab * hidden * (1 if text.get("tie_word_embeddings") else 2)
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    feed_forward = 0 if experts else 3 * hidden * intermediate
    return ModelShape(
        model_type=str(text.get("model_type", "")),
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_model_len=_size(text, "max_position_embeddings", default=4096),
        dense_params=embeddings + layers * (attention + feed_forward),
        expert_params=layers * experts * 3 * hidden * expert_width,
        num_experts=experts,
        experts_per_token=_first_size(text, ("num_experts_per_tok", "experts_per_token")) or 1,
        bytes_per_weight=_bytes_per_weight(text),
        special_token_ids=_special_token_ids(text),
    )


def known_profile_model(shape: ModelShape) -> str | None:
    """Return the model name under which measured profiles exist for this shape, if any."""
    if shape.model_type == "gpt_oss" and (shape.num_layers, shape.num_experts) == (36, 128):
        return "gptoss120b-mxfp4"
    sizes = (shape.num_layers, shape.hidden_size, shape.num_heads, shape.num_kv_heads)
    if shape.model_type == "llama" and sizes == (80, 8192, 64, 8) and shape.bytes_per_weight == 1:
        return "llama70b-fp8"
    return None


def _size(config: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ConfigError(
            f"config.json: {name} is {value!r}, must be a whole number above 0; "
            "the simulator needs it to size the model"
        )
    return value


def _first_size(config: Mapping[str, object], names: tuple[str, ...]) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int):
            return value
    return 0


def _bytes_per_weight(config: Mapping[str, object]) -> float:
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping):
        method = str(quantization.get("quant_method", ""))
        bits = quantization.get("bits")
        if isinstance(bits, int):
            return bits / 8
        return _BYTES_PER_WEIGHT.get(method, 1.0)
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return float(_BYTES_PER_FLOAT.get(dtype, 2))


def _special_token_ids(config: Mapping[str, object]) -> tuple[int, ...]:
    found: set[int] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(name)
        values = value if isinstance(value, list) else [value]
        found.update(token for token in values if isinstance(token, int))
    return tuple(sorted(found))
