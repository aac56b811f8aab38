"""How the page says what the diagnosis has: severities with signs, counts, and anchors."""

from __future__ import annotations

from collections.abc import Sequence

from ..diagnosis import Diagnosis
from ..evidence import Layer
from ..finding import Finding, Severity

__all__ = ["MODEL", "TONES", "anchors", "at", "badge", "counted", "finding_anchor", "listed", "model_name", "short"]

#: Where a path is empty.
MODEL = "(the model itself)"
TONES: dict[Severity, str] = {"error": "bad", "warning": "open", "info": ""}
# What a tone says without its colour.
_SIGNS: dict[Severity, str] = {"error": "✗", "warning": "!", "info": "i"}


def counted(number: int, word: str, several: str = "") -> str:
    """As in "1 norm", "2 norms"."""
    return f"{number:,} {word if number == 1 else several or f'{word}s'}"


def listed(paths: Sequence[str], most: int = 6) -> str:
    """The first of these layers by name, and how many more there are."""
    names = ", ".join(map(short, paths[:most]))
    return f"{names} and {len(paths) - most:,} more" if len(paths) > most else names


def badge(finding: Finding, text: str) -> tuple[str, str]:
    """A word in the tone of a finding, with its sign."""
    return f"{_SIGNS[finding.severity]} {text}", TONES[finding.severity]


def anchors(diagnosis: Diagnosis) -> dict[str, str]:
    """By path, where a layer stands on the page."""
    return {layer.path: f"layer-{number}" for number, layer in enumerate(diagnosis.evidence.layers, 1)}


def finding_anchor(finding: Finding) -> str:
    """Where a rule's findings stand."""
    return f"finding-{finding.rule}"


def at(findings: Sequence[Finding], layer: Layer) -> list[Finding]:
    """Those of a layer."""
    return [finding for finding in findings if finding.layer == layer.path]


def model_name(diagnosis: Diagnosis) -> str:
    """The model's class."""
    model = diagnosis.evidence.model
    return "a checkpoint" if model is None else type(model).__name__


def short(path: str) -> str:
    """A path, or what stands for an empty one."""
    return path or MODEL
