"""The page, put together and written."""

from __future__ import annotations

from pathlib import Path

from ..._version import __version__
from ...files import write_whole
from ...report import render
from ..diagnosis import Diagnosis
from .found import findings
from .layers import layers
from .network import network
from .summary import summary
from .words import counted, model_name

__all__ = ["write"]


def write(diagnosis: Diagnosis, path: Path) -> Path:
    """Writes the page of a diagnosis, whole or not at all.

    Args:
        diagnosis: What is shown.
        path: The file; its folder is made where it is missing.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: plotly, which draws the charts, is not installed.
    """
    name = model_name(diagnosis)
    number = counted(len(diagnosis.evidence.layers), "batch norm")
    middle = network(diagnosis)
    text = render(
        f"X-ray of {name}",
        f"{number}, one by one: what comes in, what the layer makes of it, how far its running statistics are from the"
        " data, and which mistakes were found."
        if diagnosis.evidence.layers
        else "No batch norm was found in it.",
        [summary(diagnosis), findings(diagnosis), *([middle] if middle is not None else []), layers(diagnosis)],
        footer=f"batchnorm {__version__}",
    )
    write_whole(path, text)
    return path
