"""Loaded by every process of a node whose PYTHONPATH begins here: one engine's step never ends.

The engine that first finds the file named by NODESERVE_TEST_HANG takes it away and sleeps.
"""

import contextlib
import os
import time
from pathlib import Path

from nodeserve.engine.simulated.loop import EngineLoop

_finish_step = EngineLoop._finish_step


def _hang_or_finish(self: EngineLoop) -> None:
    with contextlib.suppress(FileNotFoundError):
        Path(os.environ["NODESERVE_TEST_HANG"]).unlink()
        time.sleep(3600)
    _finish_step(self)


EngineLoop._finish_step = _hang_or_finish  # type: ignore[method-assign]  # the point of it
