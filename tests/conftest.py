"""What every test shares: its loop, how long it may take, and when it cannot run here."""

import importlib.util
import inspect
from pathlib import Path

import pytest
import uvloop

_NODE_TIMEOUT_S = 300.0
"""A real engine or a whole node starts in about 10 s; a loaded two-core machine takes longer."""

_ORDER = ("vllm", "e2e", "gpu")
"""Tests run in this order of their markers, those without first: what fails fast says so first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the GPU check run without a GPU, and say what it found as it goes."""
    parser.addoption("--fake-gpu", action="store_true", help="run tests/gpu on the fake driver")
    parser.addoption(
        "--gpu-rows", metavar="FILE", help="append a line of JSON per row of tests/gpu"
    )


def _rank(item: pytest.Item) -> int:
    return max(
        (_ORDER.index(m.name) + 1 for m in item.iter_markers() if m.name in _ORDER), default=0
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run fast tests first, give slow ones longer, and skip what this machine lacks, saying so."""
    items.sort(key=_rank)
    has_gpu = Path("/dev/nvidiactl").exists() or config.getoption("--fake-gpu")
    has_vllm = importlib.util.find_spec("vllm") is not None
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="this machine has no NVIDIA GPU"))
        if item.get_closest_marker("vllm") and not has_vllm:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed; run scripts/setup"))
        if _rank(item) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_NODE_TIMEOUT_S))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have measured and told ``record_property``."""
    figures = [
        f"{report.nodeid.rpartition('::')[2]}: {name}: {value}"
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, value in report.user_properties
    ]
    if figures:
        terminalreporter.section("figures")
        for figure in figures:
            terminalreporter.write_line(figure)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test to its end in a fresh loop, the one that the product uses."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    uvloop.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
