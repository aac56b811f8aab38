"""The house itself: one version, one direction of imports, and a package that costs what it says."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchnorm

PACKAGE = Path(batchnorm.__file__).parent
ROOT = Path(__file__).parents[1]

# What each room may import of the house: itself, and these. A room stands below all that it names, so the arrows
# cannot make a circle. A new room adds a line here, and docs/architecture.md says why.
ROOMS: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "targets": {"errors"},
    "reference": set(),
    "machine": set(),
    "files": set(),
    "optim": {"errors"},
    "report": {"files"},
    "activation": {"errors"},
    "ops": {"activation", "errors"},
    "functional": {"ops", "activation", "errors"},
    "nn": {"functional", "ops", "activation", "errors"},
    "memory": {"ops", "activation", "errors"},
    "surgery": {"nn", "functional", "ops", "activation", "errors"},
    "population": {"nn", "functional", "ops", "activation", "errors"},
    "doctor": {"population", "surgery", "nn", "ops", "optim", "report", "files", "_version", "activation", "errors"},
    "monitoring": {"population", "nn", "ops", "errors"},
    "batchnorm": {  # __init__.py
        "_version",
        "errors",
        "activation",
        "ops",
        "functional",
        "nn",
        "optim",
        "memory",
        "surgery",
        "population",
        "doctor",
        "monitoring",
    },
    "bench": {
        "batchnorm",
        "memory",
        "surgery",
        "ops",
        "nn",
        "report",
        "reference",
        "machine",
        "files",
        "errors",
        "targets",
    },
    "study": {
        "batchnorm",
        "bench",
        "population",
        "surgery",
        "report",
        "reference",
        "functional",
        "nn",
        "activation",
        "errors",
        "optim",
        "targets",
        "machine",
        "files",
        "_version",
    },
    "cli": {"study", "bench", "doctor", "surgery", "report", "batchnorm", "files", "targets", "errors", "_version"},
    "__main__": {"cli"},
}

# The library needs torch and NumPy; these are for the commands, by the room that may use them.
TOOLS: dict[str, set[str]] = {
    "ops": {"triton"},
    "doctor": {"safetensors"},
    "report": {"plotly", "latex2mathml", "matplotlib", "PIL"},
    "study": {"scipy", "mlxtend", "sklearn", "skimage", "joblib", "PIL", "ray"},
    "cli": {"typer", "rich"},
    "monitoring": {"lightning", "pytorch_lightning"},
}
BASE = {"torch", "numpy", *sys.stdlib_module_names}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "batchnorm" if first == "__init__" else first


def rooms_and_packages(path: Path, source: str) -> Iterator[tuple[str, str]]:
    """What a file imports, at its top, in functions and for types: ("room", "nn") or ("package", "torch")."""
    package = ["batchnorm", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            # `from . import x` names a room where x is one, else the package itself.
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] != "batchnorm":
                yield "package", target[0]
            else:
                yield "room", target[1] if len(target) > 1 and target[1] in ROOMS else "batchnorm"


def faults(path: Path, source: str) -> list[str]:
    room = room_of(path)
    allowed = {room} | ROOMS[room]
    packages = BASE | TOOLS.get(room, set())
    found = []
    for kind, name in rooms_and_packages(path, source):
        if name not in (allowed if kind == "room" else packages):
            found.append(f"{path.relative_to(PACKAGE)} imports {name}")
    return found


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, *arguments, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_room_is_on_the_plan():
    assert {room_of(path) for path in FILES} == set(ROOMS)


def test_the_plan_has_no_circle():
    built: set[str] = set()
    for room, needs in ROOMS.items():
        assert needs <= built, f"{room} needs {needs - built}, which stand above it"
        built.add(room)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    assert faults(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("ops/eager.py", "from ..functional import batch_norm"),
        ("ops/eager.py", "from .. import nn"),
        ("ops/eager.py", "import batchnorm.nn"),
        ("nn/fused.py", "def f():\n    from ..study import run_study"),
        ("nn/fused.py", "from ..reference import forward"),
        ("nn/fused.py", "from batchnorm import BatchNorm1d"),
        ("study/claims/convergence.py", "from ...cli import main"),
        ("functional/plain.py", "import scipy.stats"),
        ("report/page.py", "import rich"),
    ],
)
def test_a_wrong_arrow_is_seen(file, line):
    assert len(faults(PACKAGE / file, line)) == 1


def test_importing_the_library_imports_no_tool():
    loaded = set(run_python("import sys, batchnorm; print(*sys.modules)").split())
    packages = {name.split(".")[0] for name in loaded}
    assert packages.isdisjoint(
        {"typer", "rich", "plotly", "sklearn", "scipy", "mlxtend", "pandas", "matplotlib", "triton"}
    )
    rooms = {name.split(".")[1] for name in loaded if name.startswith("batchnorm.")}
    assert rooms == ROOMS["batchnorm"] - set(batchnorm._LATER)


def test_what_is_imported_later_is_there_when_asked_for():
    """Under the name that the room has for it, listed by dir() and taken by `import *`."""
    for room, names in batchnorm._LATER.items():
        code = f"import batchnorm; [print(getattr(batchnorm, name).__module__) for name in {names!r}]"
        assert all(line.startswith(f"batchnorm.{room}.") for line in run_python(code).split())
        assert set(names) <= set(importlib.import_module(f"batchnorm.{room}").__all__)
        assert {room, *names} <= set(dir(batchnorm))
    assert run_python("from batchnorm import *; print(fold.__name__)") == "fold\n"
    with pytest.raises(AttributeError, match="no attribute 'fould'"):
        batchnorm.fould  # noqa: B018


def test_importing_the_library_warns_of_nothing():
    assert run_python("import batchnorm", "-W", "error") == ""


def test_the_version_stands_in_one_place():
    number = re.compile(r"""^\s*(?:__version__|version)\s*=\s*["']""", re.MULTILINE)
    places = [path for path in (*FILES, ROOT / "pyproject.toml") if number.search(path.read_text(encoding="utf-8"))]
    assert places == [PACKAGE / "_version.py"]
    assert 'version = { attr = "batchnorm._version.__version__" }' in (ROOT / "pyproject.toml").read_text()
    # A build reads it without running it, so it must be a plain string.
    body = ast.parse((PACKAGE / "_version.py").read_text(encoding="utf-8")).body
    assert ast.literal_eval(body[-1].value) == batchnorm.__version__
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == batchnorm.__version__


def test_the_package_says_that_it_has_types():
    assert (PACKAGE / "py.typed").is_file()
    assert 'batchnorm = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()


def modules() -> list[str]:
    found = pkgutil.walk_packages(batchnorm.__path__, "batchnorm.")
    return ["batchnorm", *(module.name for module in found if module.name != "batchnorm.__main__")]


@pytest.mark.parametrize("name", modules())
def test_public_names_exist_and_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    public = getattr(module, "__all__", [])
    assert len(set(public)) == len(public)
    for each in public:
        value = getattr(module, each)
        if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
            # Its own words: a dataclass without any shows its fields.
            words = value.__doc__
            assert words, f"{name}.{each} has no docstring"
            assert not words.startswith(f"{each}("), f"{name}.{each} has no docstring"


def test_the_top_level_lists_what_it_imports():
    """A name that the package imports for its users is in ``__all__``, so ``import *`` and the docs have it."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    ours = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert {alias.name for node in ours for alias in node.names} == set(batchnorm.__all__)
    later = {name for names in batchnorm._LATER.values() for name in names}
    assert later == {alias.name for node in ours if node not in tree.body for alias in node.names}
