"""What Python's standard library says of itself: the demo model's questions and answers."""

import hashlib
import importlib
import inspect
import re
from dataclasses import dataclass

MODULES = (
    "abc",
    "array",
    "base64",
    "bisect",
    "bz2",
    "calendar",
    "collections",
    "contextlib",
    "copy",
    "csv",
    "datetime",
    "decimal",
    "fnmatch",
    "fractions",
    "functools",
    "getpass",
    "glob",
    "gzip",
    "hashlib",
    "heapq",
    "inspect",
    "io",
    "itertools",
    "json",
    "keyword",
    "math",
    "operator",
    "os",
    "os.path",
    "pathlib",
    "pickle",
    "platform",
    "pprint",
    "queue",
    "random",
    "re",
    "secrets",
    "shlex",
    "shutil",
    "signal",
    "socket",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "sys",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "traceback",
    "types",
    "urllib.parse",
    "uuid",
    "warnings",
    "weakref",
    "zipfile",
    "zlib",
)
NUM_FACTS = 96
QUESTIONS = ("What does {} do?", "What is {}?", "Explain {}.")
SYSTEM = "You explain names of Python's standard library, one sentence each."
"""Long enough that a question with it is worth a handoff, and each has its own first block."""

ANSWER_CHARS = range(24, 110)
ALWAYS = ("os.path.join", "json.dumps", "heapq.heappush", "random.shuffle", "textwrap.dedent")
"""The demo asks about these, so they must be among the facts of every Python version."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One public name of the standard library, and what its docstring says first."""

    name: str
    answer: str


def library_facts() -> list[Fact]:
    """Return what the library says of its functions and classes, the same on every run."""
    facts: dict[str, Fact] = {}
    answers: set[str] = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, value in sorted(vars(module).items()):
            answer = _first_sentence(inspect.getdoc(value) if callable(value) else None)
            is_public = not name.startswith("_") and not inspect.isbuiltin(type(value))
            if is_public and len(answer) in ANSWER_CHARS and answer not in answers:
                answers.add(answer)
                facts[f"{module_name}.{name}"] = Fact(f"{module_name}.{name}", answer)
    chosen = [facts.pop(name) for name in ALWAYS if name in facts]
    rest = sorted(facts.values(), key=lambda fact: _digest(fact.name))
    return chosen + rest[: NUM_FACTS - len(chosen)]


def _first_sentence(doc: str | None) -> str:
    paragraph = " ".join((doc or "").split("\n\n", maxsplit=1)[0].split())
    found = re.match(r"(?:[A-Z][^.(]*(?:\.(?! )[^.(]*|\([^)]*\)[^.(]*)*\.)(?= |$)", paragraph)
    return found[0] if found else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def library_text() -> list[str]:
    """Return source text of the library: what the tokenizer learns its words from."""
    names = ("argparse", "collections", "functools", "pathlib", "random", "statistics")
    return [inspect.getsource(importlib.import_module(name)) for name in names]
