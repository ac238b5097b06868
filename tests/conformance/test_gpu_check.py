"""The check of a GPU is itself checked without one, and nothing is tried on a GPU alone."""

import ast
import builtins
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nvml_fields import FakeNvmlFields, missing_fields

ROOT = Path(__file__).resolve().parents[2]


def marks(path: Path):
    """Yield each test of a file with the twin that its mark names."""
    tree = ast.parse(path.read_text())
    names = {
        ast.unparse(target): value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(value := node.value, ast.Constant)
        for target in node.targets
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            twins = [
                eval(ast.unparse(d.args[0]), dict(names))
                for d in node.decorator_list
                if isinstance(d, ast.Call) and ast.unparse(d.func) == "pytest.mark.twin"
            ]
            yield node, twins


ROWS = [
    pytest.param(node, twins, id=f"{path.stem}::{node.name}")
    for path in sorted((ROOT / "tests/gpu").glob("test_*.py"))
    for node, twins in marks(path)
]


@pytest.mark.parametrize(("row", "twins"), ROWS)
def test_every_row_has_a_name_and_a_twin_that_is_there(row, twins):
    assert ast.get_docstring(row)
    (twin,) = twins
    path, _, name = twin.partition("::")
    text = (ROOT / path).read_text()
    assert not name or f"def {name}(" in text


SCRIPTS = [
    pytest.param(node.value.value, id=f"{path.stem}::{ast.unparse(node.targets[0])}")
    for path in sorted((ROOT / "tests/gpu").glob("test_*.py"))
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.Assign)
    and isinstance(node.value, ast.Constant)
    and "\n" in str(node.value.value)
]


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_program_that_only_a_gpu_runs_names_nothing_that_is_not_there(text):
    """Where the program is a string, no other check reads it."""
    tree = ast.parse(text)
    known = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {(name.asname or name.name).partition(".")[0] for name in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            known.add(node.name)
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert read <= known


def test_every_row_is_left_out_where_there_is_no_gpu():
    for path in (ROOT / "tests/gpu").glob("test_*.py"):
        assert "pytestmark = pytest.mark.gpu" in map(
            ast.unparse, ast.parse(path.read_text()).body
        ), path


def test_fields_that_nvml_lacks_are_named():
    nvml = FakeNvmlFields(
        unsupported="nvmlDeviceGetTotalEnergyConsumption", absent="nvmlDeviceGetRemappedRows"
    )
    assert missing_fields(nvml, "GPU-0") == [
        "energy, mJ: Not Supported",
        "remapped rows: nvmlDeviceGetRemappedRows",
    ]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts/gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    return module


def test_the_check_writes_a_report_of_what_it_saw(tmp_path):
    report = tmp_path / "report.md"
    command = ["scripts/gpu_check.py", "--fake", "--only", "driver", "--report", str(report)]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = report.read_text()
    assert "| driver, devices, attributes | passed | CUDA of the driver: 13.0;" in written
    assert "the fake driver" in written
    assert "| NVML's fields are there | passed | driver: fake; missing: none |" in written


def test_a_piece_that_does_not_end_is_stopped_and_said(script):
    piece = script.Piece("slow", "tests/gpu/test_driver.py", 1.0)
    (row,) = script.run_piece(piece, 0.05, fake=True)
    assert (row["row"], row["outcome"]) == ("slow", "failed")
    assert row["reason"] == "stopped after 0 s, behind 0 rows"


def test_a_piece_that_cannot_run_is_said(script):
    piece = script.Piece("gone", "tests/gpu/no_such_file.py", 60.0)
    (row,) = script.run_piece(piece, 60.0, fake=True)
    assert row["outcome"] == "failed"
    assert row["reason"].startswith("ended with 4 behind 0 rows")


def test_reports_are_dated_and_named_after_the_gpu(script):
    path = script.report_path(None, "NVIDIA H200, 570.1, 143771 MiB", fake=False)
    assert path.parent == ROOT / "docs/gpu-runs"
    assert path.name.endswith("-nvidia-h200.md")
    assert script.report_path(None, "", fake=True).parent != path.parent
