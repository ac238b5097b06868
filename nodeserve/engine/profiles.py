"""Find the step times of a model on a GPU: measured where they are known, else computed."""

import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nodeserve.errors import ConfigError
from nodeserve.perf_model.model_shape import ModelShape, known_profile_model, parse_model_shape
from nodeserve.perf_model.profile import Profile, ProfileKey, parse_profiles
from nodeserve.perf_model.roofline import gpu_spec, roofline_profile
from nodeserve.perf_model.work_shape import TYPICAL, known_gpu, work_shape
from nodeserve.wire.accounting import WorkShape
from nodeserve.wire.spawn import EngineSpec

_KNOTS: Final = "data/step_time_knots.csv"
_KNOTS_SOURCE: Final = "AIConfigurator 0.12 (Apache-2.0), fitted to InferenceX"


def find_profile(shape: ModelShape, gpu: str, tp: int, kv_value_bytes: int) -> Profile:
    """Return the step times of a model on ``tp`` GPUs of a kind.

    Raises:
        ConfigError: The GPU is unknown.
    """
    model = known_profile_model(shape)
    if model is not None and kv_value_bytes == 2:
        text = importlib.resources.files("nodeserve.perf_model").joinpath(_KNOTS).read_text("utf-8")
        measured = parse_profiles(text, _KNOTS_SOURCE).get(ProfileKey(model, gpu, tp))
        if measured is not None:
            return measured
    return roofline_profile(shape, gpu, tp, kv_value_bytes)


def kv_value_bytes(engine: EngineSpec) -> int:
    """Return the bytes of one KV value that vLLM's ``kv_cache_dtype`` asks for."""
    return 1 if str(engine.args.get("kv_cache_dtype", "auto")).startswith("fp8") else 2


def find_work(engine: EngineSpec, gpu_name: str) -> WorkShape:
    """Return what a token costs each GPU of an engine; a typical model's cost for an unknown one.

    ``gpu_name`` is the driver's. Reads the model's ``config.json``.
    """
    try:
        shape = parse_model_shape(read_model_config(engine.model, engine.args.get("quantization")))
    except ConfigError:
        return TYPICAL
    return work_shape(shape, gpu_spec(known_gpu(gpu_name)), engine.tp, kv_value_bytes(engine))


def read_model_config(model: str, quantization: object) -> Mapping[str, object]:
    """Return a model's ``config.json``, with the quantisation that vLLM's argument asks for.

    Raises:
        ConfigError: It cannot be read.
    """
    path = Path(model, "config.json")
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model {model}: {path} cannot be read: {error}; give a model directory"
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"model {model}: {path} holds no JSON object")
    if isinstance(quantization, str):
        config.setdefault("quantization_config", {"quant_method": quantization})
    return config
