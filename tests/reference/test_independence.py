import ast
import inspect
import sys
from pathlib import Path

import pytest

import batchnorm.reference

FILES = sorted(Path(batchnorm.reference.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_reference_imports_numpy_and_nothing_else(path):
    """A truth that shared code with what it judges would share its mistakes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 1:
                continue  # a file beside it
            assert node.level == 0, f"{path.name} reaches outside the reference"
            modules = [node.module]
        else:
            continue
        for module in modules:
            top = module.split(".")[0]
            assert top == "numpy" or top in sys.stdlib_module_names, f"{path.name} imports {module}"


@pytest.mark.parametrize("name", batchnorm.reference.__all__)
def test_every_public_function_has_an_example(name):
    public = getattr(batchnorm.reference, name)
    if inspect.isfunction(public):
        assert ">>>" in inspect.getdoc(public)
