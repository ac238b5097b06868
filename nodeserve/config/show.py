"""Write a resolved configuration as the TOML that would give it again."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from nodeserve.config.node import AccountingSettings, Listener, NodeConfig, Worker

_BARE_KEY: Final = re.compile(r"^[A-Za-z0-9_-]+$")


def to_toml(config: NodeConfig) -> str:
    """Return ``config`` as a configuration file, with every default spelt out.

    Loaded again on the same node, the file gives an equal NodeConfig.
    """
    tables: list[tuple[str, Mapping[str, object]]] = [
        (
            "",
            {
                "model": config.model,
                "served_model_name": config.served_model_names,
                "runtime_dir": config.runtime_dir,
            },
        )
    ]
    tables += [("[[workers]]", _worker(worker)) for worker in config.workers]
    tables += [("[[listener]]", _listener(listener)) for listener in config.listeners]
    tables += [
        *_kv(config),
        (
            "[router]",
            {
                "local_prefill_tokens": config.router.local_prefill_tokens,
                "max_queued_requests": config.router.max_queued_requests,
            },
        ),
        ("[drain]", {"deadline_s": config.drain_deadline_s}),
        ("[liveness]", msgspec.structs.asdict(config.liveness)),
    ]
    if (accounting := config.accounting) is not None:
        tables.append(("[accounting]", _accounting(accounting)))
        tables.append(("[health]", {"overrides": accounting.health_overrides}))
    if config.simulate is not None:
        tables.append(("[simulate]", {"system": config.simulate, "speedup": config.speedup}))
    return "\n".join(_table(head, values) for head, values in tables)


def _kv(config: NodeConfig) -> list[tuple[str, Mapping[str, object]]]:
    kv, tiers = config.kv, config.tiers
    log_path = None if tiers is None else tiers.log_path
    own = {
        "async_load": kv.async_load,
        "load_at_once_bytes": kv.load_at_once_bytes,
        "lease_ttl_s": kv.lease_ttl_s,
        "gpu_transport": kv.gpu_transport,
        "min_bandwidth_gbps": config.router.min_bandwidth_gbps,
        "log": log_path,
    }
    tables: list[tuple[str, Mapping[str, object]]] = [("[kv]", own)]
    if tiers is not None:
        tables.append(("[kv.host]", {"size": tiers.host_bytes}))
        if (disk := tiers.disk) is not None:
            held = {"directories": disk.directories, "size": disk.max_bytes}
            tables.append(("[kv.disk]", held))
    return tables


def _accounting(accounting: AccountingSettings) -> dict[str, object]:
    return {
        "enabled": True,
        "db": accounting.db_path,
        "node": accounting.node,
        "zone": accounting.zone,
        "window_days": accounting.window_days,
        "request_days": accounting.request_days,
    }


def _worker(worker: Worker) -> dict[str, object]:
    return {
        "role": worker.role.value,
        "tp": worker.tp,
        "gpus": worker.gpu_uuids or None,
        "cpus": worker.cpus or None,
        "args": worker.args or None,
    }


def _listener(listener: Listener) -> dict[str, object]:
    return {
        "name": listener.name,
        "socket": listener.socket,
        "listen": None if listener.socket is not None else listener.address,
        "gateway": listener.gateway.value,
        "gateways": listener.gateways,
        "mode": f"{listener.mode:04o}",
        "group": listener.group,
        "api_key_file": listener.api_key_file,
        **msgspec.structs.asdict(listener.tenant),
        "kv_host_share": listener.kv_host_share,
        "args": listener.args or None,
    }


def _table(head: str, values: Mapping[str, object]) -> str:
    """Write one table; keys without a value are left out."""
    lines = [head] if head else []
    lines += [f"{_key(k)} = {_value(v)}" for k, v in values.items() if v is not None]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _BARE_KEY.match(name) else _string(name)


def _value(value: object) -> str:
    """Write one value inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        parts = [f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None]
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return str(value)


def _string(text: str) -> str:
    """Write a basic string: TOML's escapes are JSON's, except that DEL must be escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
