"""What a run's result depends on, written down, so that a kept result is used again only where all of it is the same.

Settings, data, code and versions: whatever can change a number. What cannot is left out: how results are drawn,
shown and stored, the number of workers, and where the data lie.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import platform
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import TypeAlias

import torch

from .claim import Experiment, Run
from .data import Source, load

__all__ = ["Ingredients", "data_fingerprint", "ingredients", "sources"]

#: Everything that a result depends on, by name; equal ingredients give an equal result.
Ingredients: TypeAlias = dict[str, object]

_PACKAGE = __name__.split(".", maxsplit=1)[0]
_PICTURES = f"{_PACKAGE}.report"
_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")


def ingredients(experiment: Experiment, run: Run) -> Ingredients:
    """Names what the result of a run depends on, as JSON values."""
    return {
        "experiment": run.claim,
        "arm": run.arm,
        "seed": run.seed,
        # A dataclass writes itself with all of its settings, floats to the last bit.
        "settings": repr(experiment),
        "data": {"fingerprint": data_fingerprint(run.data), "samples": run.data.samples} if run.data else None,
        "code": _code(type(experiment).__module__),
        "versions": _versions(),
    }


def data_fingerprint(source: Source | None) -> str:
    """The hash of every pixel and label of a source; empty for none."""
    return "" if source is None else load(source).fingerprint


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    found |= {name: next((d.version for d in distributions(name=name)), "not installed") for name in _LIBRARIES}
    # Which instructions torch's kernels use, and so in which order they add.
    found["processor"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return found


@cache
def _code(module: str) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(sources(module).items()):
        digest.update(name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sources(module: str) -> dict[str, Path]:
    """The files of a module and of all modules of its package and of ours that it imports, directly or not.

    Read from the source: imports inside functions count. Compiled extensions of ours always count, since they
    register themselves and are imported by name nowhere. What draws pictures does not count.
    """
    packages = {_PACKAGE, module.split(".", maxsplit=1)[0]}
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        left_out = name == _PICTURES or name.startswith(f"{_PICTURES}.")
        path = None if name in found or left_out or name.split(".", maxsplit=1)[0] not in packages else _file(name)
        if path is not None:
            found[name] = path
            waiting += _imports(name, path)
    root = _file(_PACKAGE)
    assert root is not None
    for suffix in ("*.so", "*.pyd"):
        found |= {path.name: path for path in root.parent.rglob(suffix)}
    return found


def _file(name: str) -> Path | None:
    """The source file of a module; None where the name is none (a function, say) or it has no source."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        place = getattr(loaded, "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            return None
        place = spec.origin if spec is not None else None
    return Path(place) if place is not None and place.endswith(".py") else None


def _imports(name: str, path: Path) -> Iterator[str]:
    """Full names of what a file imports; of ``from a import b`` both, since b may be a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
