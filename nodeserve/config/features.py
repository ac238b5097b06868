"""Refuse by name what nodeserve sets itself, and what does not work in this release."""

from collections.abc import Mapping
from typing import Final

from nodeserve.config.facts import ModelFacts
from nodeserve.config.node import ArgValue
from nodeserve.config.problems import Problems

_WORKERS: Final = "set `tp` in [[workers]], or `--tp-prefill` and `--tp-decode`"
_ONE_NODE: Final = "nodeserve places its own workers on one node; see [[workers]]"
_LISTENER: Final = "see [[listener]], `--socket` and `--listen`"

OWNED: Final[Mapping[str, str]] = {
    "kv_transfer_config": "nodeserve moves KV between its workers itself; see [kv]",
    "kv_events_config": "nodeserve reads KV events itself",
    "kv_offloading_size": "it would replace nodeserve's own way to move KV",
    "kv_offloading_backend": "it would replace nodeserve's own way to move KV",
    "ec_transfer_config": "there are no encoder workers in this release",
    "tensor_parallel_size": _WORKERS,
    "pipeline_parallel_size": "pipelines across GPUs do not work in this release; use `tp`",
    "data_parallel_size": "set `count` in [[workers]], or `--prefill` and `--decode`",
    "distributed_executor_backend": _ONE_NODE,
    "device_ids": "set `gpus` in [[workers]]",
    "numa_bind": "set `cpus` in [[workers]]",
    "numa_bind_nodes": "set `cpus` in [[workers]]",
    "numa_bind_cpus": "set `cpus` in [[workers]]",
    "nnodes": _ONE_NODE,
    "node_rank": _ONE_NODE,
    "master_addr": _ONE_NODE,
    "master_port": _ONE_NODE,
    "headless": _ONE_NODE,
    "api_server_count": "set `gateways` in [[listener]]",
    "worker_cls": "nodeserve has its own worker",
    "scheduler_cls": "nodeserve depends on vLLM's own scheduler",
    "served_model_name": "set it at the top of the file, or by a flag before `--`",
    "shutdown_timeout": "set `drain.deadline_s`",
    "disable_log_stats": "nodeserve needs the scheduler's statistics to route",
    "host": _LISTENER,
    "port": _LISTENER,
    "grpc_port": "there is no gRPC listener in this release",
    "uds": _LISTENER,
    "api_key": "set `api_key_file` in [[listener]]: arguments are visible to every user",
    "middleware": "it does not work in this release",
}
"""Arguments of vLLM that nodeserve sets, each with what to do instead."""

ON_COMMAND_LINE: Final = "--"
"""Stands for a path where arguments came as options."""

_OWNED_PREFIXES: Final = ("data_parallel_", "dp_supervisor_", "elastic_ep_")

_UNSUPPORTED: Final[Mapping[str, str]] = {
    "speculative_config": "speculative decoding",
    "spec_method": "speculative decoding",
    "spec_model": "speculative decoding",
    "spec_tokens": "speculative decoding",
    "enable_lora": "LoRA",
    "lora_modules": "LoRA",
    "default_mm_loras": "LoRA",
    "enable_elastic_ep": "elastic expert parallelism",
    "diffusion_config": "text diffusion",
    "enable_sleep_mode": "sleep mode",
    "enable_cumem_allocator": "GPU memory of vLLM's own allocator, which peers cannot read",
    "decode_context_parallel_size": "context parallelism",
    "prefill_context_parallel_size": "context parallelism",
    "mm_encoder_only": "encoder-only serving",
}

_POOLING_ENDINGS: Final = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "RewardModel",
    "BertModel",
    "RobertaModel",
    "EmbeddingModel",
)
_MULTIMODAL_KEYS: Final = (
    "vision_config",
    "audio_config",
    "video_config",
    "speech_config",
    "thinker_config",
    "mm_vision_tower",
    "image_token_id",
    "image_token_index",
)


def option(name: str) -> str:
    """Return how an argument is written on a command line."""
    return "--" + name.replace("_", "-")


def _is_off(name: str, value: ArgValue) -> bool:
    """Say whether a value of an unsupported argument asks for nothing."""
    return value is None or value is False or (name.endswith("_size") and value == 1)


def refuse_args(args: Mapping[str, ArgValue], path: str, problems: Problems) -> None:
    """Note the arguments that nodeserve owns or that don't work across its workers.

    ``path`` is what the arguments' names follow in messages, for example ``engine.args``, or
    ON_COMMAND_LINE.
    An unsupported argument whose value turns the feature off is let through.
    """
    for name, value in args.items():
        key = option(name) if path == ON_COMMAND_LINE else f"{path}.{name}"
        if name in OWNED:
            problems.add(key, f"is set by nodeserve: {OWNED[name]}")
        elif name.startswith(_OWNED_PREFIXES):
            problems.add(key, f"is set by nodeserve: {_ONE_NODE}")
        elif name in _UNSUPPORTED and not _is_off(name, value):
            what = _UNSUPPORTED[name]
            problems.add(key, f"asks for {what}, which this release cannot do")
        elif name == "runner" and value == "pooling":
            problems.add(key, "is `pooling`: this release serves generative models")
        elif name == "convert" and value not in ("none", "auto", None):
            problems.add(key, f"is {value!r}: this release serves generative models")


def refuse_model(model: ModelFacts, args: Mapping[str, ArgValue], problems: Problems) -> None:
    """Note a model of a kind that this release does not serve; ``args`` are the engine's."""
    pooling = [name for name in model.architectures if name.endswith(_POOLING_ENDINGS)]
    if pooling and args.get("runner") != "generate":
        problems.add(
            "model",
            f"{model.given} is a {pooling[0]}, which embeds or classifies; "
            "this release serves generative models",
        )
    found = [key for key in _MULTIMODAL_KEYS if key in model.keys]
    if found and args.get("language_model_only") is not True:
        problems.add(
            "model",
            f"{model.given} takes images, audio or video (`{found[0]}` in its config.json), "
            "which this release cannot do; serve its text part with `-- --language-model-only`",
        )
    if "is_encoder_decoder" in model.keys:
        problems.add("model", f"{model.given} is an encoder-decoder, which this release cannot do")
