"""The gateway that is vLLM's Rust front end: the ``vllm-rs`` binary of the same release."""

import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nodeserve.config.node import Args, ArgValue
from nodeserve.errors import ConfigError

BINARY_NAME: Final = "vllm-rs"

UNDERSTOOD: Final = frozenset(
    {
        "allow_credentials",
        "allowed_headers",
        "allowed_methods",
        "allowed_origins",
        "chat_template",
        "chat_template_content_format",
        "default_chat_template_kwargs",
        "disable_log_stats",
        "enable_auto_tool_choice",
        "enable_log_requests",
        "enable_prompt_tokens_details",
        "enable_request_id_headers",
        "enable_scale_out",
        "generation_config",
        "hf_overrides",
        "language_model_only",
        "limit_mm_per_prompt",
        "max_logprobs",
        "reasoning_parser",
        "revision",
        "shutdown_timeout",
        "sse_keep_alive_interval",
        "ssl_ca_certs",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_ciphers",
        "ssl_keyfile",
        "stream_interval",
        "tokenizer_mode",
        "tool_call_parser",
        "tool_strict_level",
    }
)
"""vLLM arguments that the binary acts on. Source: ``vllm-rs serve --help``, vLLM 0.32.

``enable_auto_tool_choice`` is accepted and without effect: a tool parser is enough.
"""

UNSUPPORTED: Final = frozenset(
    {
        "allowed_local_media_path",
        "allowed_media_domains",
        "custom_histogram_buckets",
        "default_mm_loras",
        "enable_force_include_usage",
        "enable_log_deltas",
        "enable_log_outputs",
        "enable_per_request_metrics",
        "enable_prompt_embeds",
        "enable_server_load_tracking",
        "enable_ssl_refresh",
        "enable_tokenizer_info_endpoint",
        "exclude_tools_when_tool_choice_none",
        "fingerprint_mode",
        "fingerprint_value",
        "grpc",
        "hf_config_path",
        "io_processor_plugin",
        "log_config_file",
        "max_num_queued_reqs",
        "max_num_queued_tokens",
        "media_io_kwargs",
        "middleware",
        "mm_processor_kwargs",
        "otlp_traces_endpoint",
        "override_generation_config",
        "reasoning_parser_plugin",
        "response_role",
        "return_tokens_as_token_ids",
        "root_path",
        "skip_tokenizer_init",
        "tokenizer",
        "tokenizer_revision",
        "tokens_only",
        "tool_parser_plugin",
        "tool_server",
        "trust_request_chat_template",
        "trust_request_mm_kwargs",
    }
)
"""vLLM arguments that change a front end's answers and that the binary cannot honour.

Source: the binary's own refusal ("not implemented in Rust frontend yet"), 0.32, and the front
end arguments it ignores without a word. Everything in neither set belongs to the engine, or to
the Python server's own logging, and is left out.
"""

_DEFAULTS: Final[Mapping[str, ArgValue]] = {
    "enable_prompt_tokens_details": True,
    # Without a parser the binary answers a request with tools with 500. "auto" is what its own
    # `serve` command uses: the parser that the model's name calls for, or none.
    "reasoning_parser": "auto",
    "tool_call_parser": "auto",
}

API_KEY_VARIABLE: Final = "VLLM_API_KEY"


def find_binary(environ: Mapping[str, str]) -> Path:
    """Return where ``vllm-rs`` is, without importing vLLM.

    The one inside the installed ``vllm`` package wins, since its version is the engine's. Only
    the CUDA wheel ships it there; elsewhere it is looked for on ``PATH``.

    Raises:
        ConfigError: It is not installed.
    """
    package = importlib.util.find_spec("vllm")
    for folder in (package.submodule_search_locations or ()) if package else ():
        inside = Path(folder) / BINARY_NAME
        if os.access(inside, os.X_OK):
            return inside
    on_path = shutil.which(BINARY_NAME, path=environ.get("PATH"))
    if on_path is not None:
        return Path(on_path)
    message = (
        f"gateway rust: {BINARY_NAME} is neither in the vllm package nor on PATH; install "
        "nodeserve[cuda], run scripts/setup, put the binary of the same vLLM release on PATH, "
        "or use --gateway python"
    )
    raise ConfigError(message)


def settings(listener: str, model: str, args: Args) -> dict[str, ArgValue]:
    """Return the part of ``args`` that the binary acts on, defaults included.

    Args:
        listener: Name of the listener, for messages.
        model: Directory of the model.
        args: vLLM arguments by their Python names, the engine's among them.

    Raises:
        ConfigError: An argument asks for what only the Python server can do.
    """
    asked = {name: value for name, value in args.items() if value is not None}
    if asked.get("tokenizer") == model:
        del asked["tokenizer"]
    refused = sorted(name for name in asked if name in UNSUPPORTED and asked[name] is not False)
    if refused:
        message = (
            f"listener {listener}: gateway rust cannot do {', '.join(refused)} in this vLLM "
            "release; leave that out or use --gateway python"
        )
        raise ConfigError(message)
    return dict(_DEFAULTS) | {name: asked[name] for name in sorted(asked.keys() & UNDERSTOOD)}


def command(
    binary: Path,
    *,
    http_fd: int,
    input_fd: int,
    output_fd: int,
    arguments: Mapping[str, ArgValue],
) -> tuple[str, ...]:
    """Return the argv that makes ``binary`` the front end of one engine.

    Args:
        binary: Where ``vllm-rs`` is.
        http_fd: Listening socket for clients, by its number in the new process; so the others.
        input_fd: Listening Unix socket on which requests go to the engine.
        output_fd: Listening Unix socket on which the engine's outputs arrive.
        arguments: The JSON bootstrap object, by vLLM's Python argument names.
    """
    sockets = {
        "--listen-fd": http_fd,
        "--input-listener-fd": input_fd,
        "--output-listener-fd": output_fd,
    }
    engines = {"--engine-start-index": 0, "--engine-count": 1, "--data-parallel-size": 1}
    numbers = [word for flag, number in (sockets | engines).items() for word in (flag, str(number))]
    return (str(binary), "frontend", *numbers, "--args-json", json.dumps(arguments, sort_keys=True))


def environment(
    environ: Mapping[str, str], *, listener: str, api_keys: tuple[str, ...]
) -> dict[str, str]:
    """Return the whole environment of the binary.

    The key travels here because every user of the machine can read a process's arguments. A
    key in the daemon's own environment is dropped: only the configuration sets keys.

    Raises:
        ConfigError: More than one key: the binary takes one.
    """
    if len(api_keys) > 1:
        message = (
            f"listener {listener}: gateway rust takes one API key, {len(api_keys)} given; give "
            "one, add a listener for each, or use --gateway python"
        )
        raise ConfigError(message)
    child = {name: value for name, value in environ.items() if name != API_KEY_VARIABLE}
    child |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if api_keys:
        child[API_KEY_VARIABLE] = api_keys[0]
    return child
