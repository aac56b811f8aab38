"""A model as a file, in the form that its name asks for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import ArgumentError, SurgeryError
from ..files import whole
from ..surgery.example import arguments, said
from ..surgery.exported import quiet

__all__ = ["check", "write"]


def check(path: Path) -> None:
    """Refuses a file that could not be written, before anything is done.

    Raises:
        ArgumentError: Its name says no form, it is a folder, or packages are missing.
    """
    if path.suffix.lower() not in _FORMS:
        raise ArgumentError(f"--out {path}: nothing is known of {path.suffix or 'a name without a suffix'}.", _MEND)
    if path.is_dir():
        raise ArgumentError(f"--out {path} is a folder.", _MEND)
    if path.suffix.lower() == ".onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ArgumentError(f"--out {path} needs {', '.join(missing)}.", f"pip install {' '.join(missing)}")


def write(model: torch.nn.Module, example_inputs: Any, path: Path) -> None:
    """Writes a model; whatever happens in between, the file's former or its new content stands there whole.

    Raises:
        SurgeryError: It cannot be exported.
        OSError: The file cannot be written.
    """
    with whole(path) as aside:
        try:
            with quiet():
                _FORMS[path.suffix.lower()](model, example_inputs, aside)
        except OSError:
            raise
        except Exception as error:  # the exporters raise what the model's code does, and many kinds of their own
            problem = f"the folded model cannot be written as {path.suffix}: {said(_cause(error))}."
            raise SurgeryError(problem, "write a .pt file, or export the folded model in Python.") from error


def _cause(error: BaseException) -> BaseException:
    """What went wrong first: an exporter's own error is a page about its graph."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _onnx(model: torch.nn.Module, example_inputs: Any, path: Path) -> None:
    positional, named = arguments(example_inputs)
    torch.onnx.export(model, positional, path, kwargs=named, dynamo=True, external_data=False, verbose=False)


def _exported(model: torch.nn.Module, example_inputs: Any, path: Path) -> None:
    positional, named = arguments(example_inputs)
    torch.export.save(torch.export.export(model, positional, named, strict=False), path)


def _state(model: torch.nn.Module, example_inputs: Any, path: Path) -> None:
    torch.save(model.state_dict(), path)


_FORMS: dict[str, Callable[[torch.nn.Module, Any, Path], None]] = {
    ".onnx": _onnx,
    ".pt2": _exported,
    ".pt": _state,
    ".pth": _state,
}
_MEND = "name a file that ends in .onnx, .pt2 (torch.export), or .pt or .pth (a state_dict)."
