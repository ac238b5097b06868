"""The operator's vLLM arguments, joined with what only the node may decide."""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from vllm.config import KVEventsConfig, KVTransferConfig, StructuredOutputsConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from nodeserve.engine.vllm.environment import Platform, require_exportable
from nodeserve.errors import ConfigError
from nodeserve.wire.spawn import GRAMMAR_BACKEND, PREFIX_HASH_ALGO, WorkerSpec

DEFAULTS: Final[Mapping[str, Any]] = {
    "enable_prefix_caching": True,
    # Blocks below the GPU are found by it; another one is refused beside a host tier.
    "prefix_caching_hash_algo": PREFIX_HASH_ALGO,
}

CPU_DEFAULTS: Final[Mapping[str, Any]] = {
    "enforce_eager": True,
    # The CPU backend wants a multiple of 32, and its own default of 128 wastes memory on short
    # prompts. Source: vllm/platforms/cpu.py:292 (0.32).
    "block_size": 32,
    # vLLM's default is most of the machine's memory, for each worker.
    "kv_cache_memory_bytes": 1 << 30,
}

GPU_TRANSPORT: Final = "gpu_transport"
"""Where the connector finds how GPU memory is to be shared."""

OWNED: Final = (
    "model",
    "served_model_name",
    "tensor_parallel_size",
    "distributed_executor_backend",
    "kv_transfer_config",
    "kv_events_config",
    "disable_log_stats",
)
"""Arguments that the node decides; the config has its own settings for some of them."""

UNSUPPORTED: Final[Mapping[str, str]] = {
    "speculative_config": "draft tokens have KV of their own that is not handed over",
    "ec_transfer_config": "encoder caches are not handed over",
    "kv_offloading_size": "it would replace nodeserve's KV connector",
    "enable_elastic_ep": "the engine's ranks would change under its peers",
    "scheduler_cls": "leases rest on vLLM's own scheduler",
    "enable_sleep_mode": "KV that sleeps cannot be read by peers",
    "enable_cumem_allocator": "its memory cannot be read by peers",
}

ONE: Final = (
    "pipeline_parallel_size",
    "data_parallel_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
    "nnodes",
)
"""Sizes that must be 1: a handoff is one KV pool per tensor parallel rank."""


def vllm_config(
    spec: WorkerSpec, platform: Platform, transfer: KVTransferConfig | None
) -> VllmConfig:
    """Return vLLM's configuration for one worker. Reads the model's own config files.

    Args:
        spec: What the worker was told at birth.
        platform: What the installed vLLM computes on.
        transfer: How the engine hands KV over; None for not at all.

    Raises:
        ConfigError: An argument is unknown, not the operator's to set, does not work behind a
            handoff, or vLLM refuses it.
    """
    given = dict(spec.engine.args)
    require_supported(given)
    defaults = dict(CPU_DEFAULTS) if platform is Platform.CPU else {}
    arguments = {**DEFAULTS, **defaults, **given, **_owned(spec)}
    arguments["kv_transfer_config"] = transfer
    grammar = _grammar(given.get("structured_outputs_config"))
    try:
        arguments["structured_outputs_config"] = StructuredOutputsConfig(**grammar)
        arguments["kv_events_config"] = _kv_events(spec, arguments)
        config = AsyncEngineArgs(**arguments).create_engine_config()
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        text = f"worker {spec.name}: vLLM refuses its engine arguments: {reason_of(error)}"
        raise ConfigError(f"{text}; change engine.args") from error
    _require_generation(config)
    return config


def reason_of(error: Exception) -> str:
    """Return why vLLM refuses a setting, on one line.

    Pydantic says first how many errors there are and of what class; a KeyError shows its text in
    quotes.
    """
    if isinstance(error, ValidationError):
        return " ".join("; ".join(found["msg"] for found in error.errors()).split())
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(said).split())


def transfer_config(spec: WorkerSpec, platform: Platform) -> KVTransferConfig:
    """Return how a worker's engine hands KV over.

    Raises:
        ConfigError: Its memory cannot be shared under the settings of this environment.
    """
    require_exportable(platform, os.environ)
    return KVTransferConfig(
        kv_connector="NodeserveConnector",
        kv_connector_module_path="nodeserve.engine.vllm.connector",
        # Prefill or decode is a matter of routing: every worker can do both.
        kv_role="kv_both",
        # vLLM's default ends the request instead.
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={
            "generation": spec.generation,
            "async_load": spec.kv.async_load,
            "load_at_once_bytes": spec.kv.load_at_once_bytes,
            "lease_ttl_s": spec.kv.lease_ttl_s,
            "one_tp": spec.kv.one_tp,
            "one_block_size": spec.kv.one_block_size,
            GPU_TRANSPORT: spec.kv.gpu_transport,
            **_tier(spec),
        },
    )


def _tier(spec: WorkerSpec) -> dict[str, Any]:
    if spec.kv.tier_address is None:
        return {}
    return {"tier_address": spec.kv.tier_address, "worker": spec.name}


def require_supported(arguments: Mapping[str, Any]) -> None:
    """Refuse, by name, arguments that cannot work in a node.

    Raises:
        ConfigError: Naming the argument and why.
    """
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name, value in arguments.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see vLLM's engine arguments"
            text = f"engine.args.{name} is not an argument of this vLLM; {hint}"
            raise ConfigError(text)
        if name in OWNED:
            text = f"engine.args.{name} is decided by nodeserve; remove it"
            raise ConfigError(text)
        if name in UNSUPPORTED and value:
            text = f"engine.args.{name} does not work here: {UNSUPPORTED[name]}; remove it"
            raise ConfigError(text)
        if name in ONE and value != 1:
            text = f"engine.args.{name} is {value}, must be 1; use tensor parallelism or workers"
            raise ConfigError(text)
    if arguments.get("runner") == "pooling":
        raise ConfigError("engine.args.runner is pooling: only generating models are served")


def _require_generation(config: VllmConfig) -> None:
    model = config.model_config
    if model.runner_type != "generate" or model.is_encoder_decoder:
        kind = "encoder-decoder" if model.is_encoder_decoder else model.runner_type
        text = f"model {model.model} is of kind {kind}: only decoder-only generation is served"
        raise ConfigError(text)


def _owned(spec: WorkerSpec) -> dict[str, Any]:
    return {
        "model": spec.engine.model,
        "served_model_name": [spec.engine.served_model_name],
        "tensor_parallel_size": spec.engine.tp,
        "distributed_executor_backend": "uni" if spec.engine.tp == 1 else "mp",
    }


def _kv_events(spec: WorkerSpec, arguments: Mapping[str, Any]) -> KVEventsConfig | None:
    if not arguments["enable_prefix_caching"]:
        return None
    return KVEventsConfig(enable_kv_cache_events=True, endpoint=spec.kv_events_address)


def _grammar(given: object) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise ConfigError("engine.args.structured_outputs_config must be a table")
    settings: dict[str, Any] = {"backend": GRAMMAR_BACKEND, **(given or {})}
    if settings["backend"] != GRAMMAR_BACKEND:
        text = (
            f"engine.args.structured_outputs_config.backend is {settings['backend']}, "
            f"gateways and engines agree on {GRAMMAR_BACKEND}; remove it"
        )
        raise ConfigError(text)
    return settings
