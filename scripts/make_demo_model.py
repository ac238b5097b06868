"""Make the demo's model: a Llama of 12 million parameters that knows Python's library.

usage: make_demo_model.py [--out FOLDER]

It is trained here, from nothing, in about a minute: its text is what Python's own standard
library says of itself, turned into questions and answers. Greedy decoding is therefore worth
reading, ends by itself, and depends on the prompt. The last line printed is the model's folder.
A model made before by the same programs and versions is used again.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import os
import sys
from pathlib import Path

from progress import say

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def cache_folder() -> Path:
    """Return where this program's model lies: another program or version, another folder."""
    versions = [f"{name}={importlib.metadata.version(name)}" for name in PACKAGES]
    digest = hashlib.sha256(f"{sys.version} {versions}".encode())
    for name in ("demo_facts.py", "demo_training.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return ROOT / ".cache" / f"demo-model-{digest.hexdigest()[:12]}"


def main() -> None:
    """Make the model unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="default: under .cache")
    out = parser.parse_args().out or cache_folder()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # On a busy machine, threads that spin while they wait make each step ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not (out / "config.json").exists():
        say("==> demo model, trained on Python's own documentation")
        out.parent.mkdir(parents=True, exist_ok=True)
        # torch takes seconds to import: only where there is something to train.
        importlib.import_module("demo_training").make(out)
    say(str(out))


if __name__ == "__main__":
    main()
