"""Loaded by every process of a node whose PYTHONPATH begins here: one engine's step never ends.

The engine that first finds the file named by NODESERVE_TEST_HANG takes it away and sleeps.
"""

import contextlib
import os
import time
from pathlib import Path

from nodeserve.engine.simulated.loop import EngineLoop

_step = EngineLoop._step


def _hang_or_step(self: EngineLoop, now_s: float) -> None:
    with contextlib.suppress(FileNotFoundError):
        Path(os.environ["NODESERVE_TEST_HANG"]).unlink()
        time.sleep(3600)
    _step(self, now_s)


EngineLoop._step = _hang_or_step  # type: ignore[method-assign]  # the point of it
