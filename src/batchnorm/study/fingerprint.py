"""What a run's result depends on, written down, so that a kept result is used again only where all of it is the same.

Settings, data, code and versions: whatever can change a number. What cannot is left out: how results are drawn,
shown and stored, the number of workers, and where the data lie.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.metadata import distributions, packages_distributions, version
from pathlib import Path
from typing import TypeAlias

import torch

from ..machine import processor
from .claim import Experiment, Run, SubjectClaim
from .data import Source, load
from .subjects import Own
from .threads import THREAD_VARIABLES

__all__ = ["Ingredients", "ingredients", "sources"]

#: Everything that a result depends on, by name; equal ingredients give an equal result.
Ingredients: TypeAlias = dict[str, object]

_PACKAGE = __name__.split(".", maxsplit=1)[0]
_PICTURES = f"{_PACKAGE}.report"
# Environment variables of the libraries behind torch, by which their kernels can be chosen.
_SWITCHES = ("ATEN_", "DNNL_", "MKL_", "ONEDNN_", "OPENBLAS_")
_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "scikit-image")


def ingredients(experiment: Experiment, run: Run) -> Ingredients:
    """Names what the result of a run depends on, as JSON values."""
    return {
        "experiment": run.claim,
        "arm": run.arm,
        "seed": run.seed,
        # A dataclass writes itself with all of its settings, floats to the last bit.
        "settings": repr(experiment),
        "data": _data(run.data),
        "code": _code(type(experiment).__module__),
        "network": _network(experiment, run.seed),
        "versions": _versions(),
    }


def _network(experiment: Experiment, seed: int) -> dict[str, str] | None:
    """A network of the user's: its code, what a seed builds, and versions of the packages that its code uses."""
    if not isinstance(experiment, SubjectClaim) or not isinstance(experiment.subject, Own):
        return None
    own = experiment.subject
    module = own.target.partition(":")[0]
    return {"code": _code(module), "built": _built(own, seed)} | _packages(module)


@lru_cache(maxsize=64)
def _built(own: Own, seed: int) -> str:
    return own.fingerprint(seed)


@cache
def _packages(module: str) -> dict[str, str]:
    """Versions of the installed packages that a module and the user's files behind it import, but for those known."""
    tops = {module.partition(".")[0]}
    for name, path in sources(module).items():
        if path.suffix == ".py" and name.partition(".")[0] != _PACKAGE:
            tops |= {imported.partition(".")[0] for imported in _imports(name, path)}
    owners = packages_distributions()
    names = {owner for top in tops for owner in owners.get(top, []) if owner not in (*_LIBRARIES, _PACKAGE)}
    return {name: version(name) for name in sorted(names)}


def _data(source: Source | None) -> dict[str, object] | None:
    """Every pixel and label of a source by their hash, and how many of them a seed uses."""
    if source is None:
        return None
    images = load(source)
    return {"fingerprint": images.fingerprint, "samples": min(source.samples, len(images.y))}


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    found |= {name: next((d.version for d in distributions(name=name)), "not installed") for name in _LIBRARIES}
    # What decides which kernels torch and its libraries take, and so in which order they add.
    found["processor"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {processor()}"
    switches = {name: value for name, value in os.environ.items() if name.startswith(_SWITCHES)}
    return found | {name: switches[name] for name in sorted(switches) if name not in THREAD_VARIABLES}


@cache
def _code(module: str) -> str:
    digest = hashlib.sha256()
    # A script's own module has another name in the processes that it starts.
    for name, path in sorted(sources("__main__" if module == "__mp_main__" else module).items()):
        digest.update(name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sources(module: str) -> dict[str, Path]:
    """The files of a module and of all modules that it imports, directly or not, but for installed packages of others.

    Read from the source: imports inside functions count. Compiled extensions of ours always count, since they
    register themselves and are imported by name nowhere. What draws pictures does not count.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        left_out = name == _PICTURES or name.startswith(f"{_PICTURES}.")
        path = None if name in found or left_out or _foreign(name.split(".", maxsplit=1)[0]) else _file(name)
        if path is not None:
            found[name] = path
            waiting += _imports(name, path)
    root = _file(_PACKAGE)
    assert root is not None
    for suffix in ("*.so", "*.pyd"):
        found |= {path.name: path for path in root.parent.rglob(suffix)}
    return found


@cache
def _foreign(package: str) -> bool:
    """Whether a package is Python's own or an installed one of others, which its version stands for."""
    if package == _PACKAGE:
        return False
    path = _file(package)
    # A folder without an __init__.py is a package too, and has places instead of a file.
    places = [path] if path is not None else [Path(place) for place in _folders(package)]
    libraries = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return all(any(place.is_relative_to(library) for library in libraries) for place in places)


def _folders(package: str) -> list[str]:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    return list(spec.submodule_search_locations or ()) if spec is not None else []


def _file(name: str) -> Path | None:
    """The source file of a module; None where the name is none (a function, say) or it has no source."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        place = getattr(loaded, "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # no such module, or one that cannot be imported
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
