"""Find the step times of a model on a GPU: measured where they are known, else computed."""

import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nodeserve.errors import ConfigError
from nodeserve.perf_model.model_shape import ModelShape, known_profile_model
from nodeserve.perf_model.profile import Profile, ProfileKey, parse_profiles
from nodeserve.perf_model.roofline import roofline_profile

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
