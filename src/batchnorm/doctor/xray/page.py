"""The page, put together and written."""

from __future__ import annotations

from pathlib import Path

from ..._version import __version__
from ...files import write_whole
from ...report import render
from ..diagnosis import Diagnosis
from .channels import shown_run
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
    middle = network(diagnosis)
    text = render(
        f"X-ray of {name}",
        _lead(diagnosis),
        [summary(diagnosis), findings(diagnosis), *([middle] if middle is not None else []), layers(diagnosis)],
        footer=f"batchnorm {__version__}",
        without_scripts="each layer's numbers and small pictures do not",
    )
    write_whole(path, text)
    return path


def _lead(diagnosis: Diagnosis) -> str:
    evidence = diagnosis.evidence
    if not evidence.layers:
        return "No batch norm was found in it."
    shown = (
        "what it holds"
        if all(shown_run(layer) is None for layer in evidence.layers)
        else "what comes in, what the layer makes of it, how far its running statistics are from the data"
    )
    one_by_one = ", one by one" if len(evidence.layers) > 1 else ""
    return f"{counted(len(evidence.layers), 'batch norm')}{one_by_one}: {shown}, and which mistakes were found."
