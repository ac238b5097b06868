"""Claims about the threads that compile grammars."""

import os
import threading

from nodeserve.engine.vllm.grammar_threads import NICE, background_executor


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def priority_of_a_child() -> int:
    found: list[int] = []
    child = threading.Thread(target=lambda: found.append(priority()))
    child.start()
    child.join()
    return found[0]


def test_grammars_compile_behind_everything_else_and_so_do_their_threads() -> None:
    before = priority()
    with background_executor() as executor:
        assert executor.submit(priority).result(10) == NICE
        assert executor.submit(priority_of_a_child).result(10) == NICE
    assert priority() == before
