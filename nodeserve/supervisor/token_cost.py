"""What a token takes of this node's GPUs, as far as that can be modelled."""

from typing import Final

from nodeserve.config.node import NodeConfig
from nodeserve.engine.profiles import find_profile, read_model_config
from nodeserve.errors import ConfigError
from nodeserve.perf_model.model_shape import parse_model_shape
from nodeserve.perf_model.request_cost import RequestCost
from nodeserve.perf_model.roofline import parse_system
from nodeserve.wire.kinds import Role

_STAND_IN: Final = "h100-sxm"
"""For real devices, whose step times nobody has looked up: the ratio of a prompt token to an
output token is the model's more than the GPU's."""

_KV_VALUE_BYTES: Final = 2


def token_cost(config: NodeConfig) -> RequestCost | None:
    """Return what tokens cost where they are computed; None for a model of unknown shape.

    Reads the model's ``config.json``.
    """
    try:
        gpu = _STAND_IN if config.simulate is None else parse_system(config.simulate)[1]
        quantization = config.workers[0].args.get("quantization")
        shape = parse_model_shape(read_model_config(config.model, quantization))
        prompt, output = (
            RequestCost.of(find_profile(shape, gpu, tp, _KV_VALUE_BYTES), tp)
            for tp in (_tp(config, Role.PREFILL), _tp(config, Role.DECODE))
        )
    except ConfigError:
        return None
    return RequestCost(prompt.prompt_token_s, output.output_token_s)


def _tp(config: NodeConfig, role: Role) -> int:
    """Return the GPUs of the first worker of a role, or of one that does both."""
    for wanted in (role, Role.AGGREGATED):
        for worker in config.workers:
            if worker.role is wanted:
                return worker.tp
    return config.workers[0].tp
