"""Diagnoses made by hand, whatever rules there are."""

from __future__ import annotations

from typing import Any

import torch

from batchnorm import Diagnosis, Finding
from batchnorm.doctor.evidence import Evidence, Layer
from batchnorm.doctor.finding import Fix, Measurement, Severity, Subject
from batchnorm.doctor.registry import registered

NOTHING = Fix("does nothing", lambda subject: None)


def finding(layer: str = "stem.1", severity: Severity = "warning", rule: str = "BN011", **other: Any) -> Finding:
    """One, whatever it says."""
    given: dict[str, Any] = {
        "message": "momentum is 0.99.",
        "evidence": {"momentum": Measurement(0.99, 0.5)},
        "mend": f'model.get_submodule("{layer}").momentum = 0.01',
        **other,
    }
    return Finding(rule, registered()[rule].name, layer, severity, **given)


def diagnosis(*findings: Finding, skipped: dict[str, str] | None = None, ignored: int = 0) -> Diagnosis:
    """Of these findings, in a model of three layers."""
    rules = tuple(rule for code, rule in registered().items() if code in {each.rule for each in findings})
    layers = [Layer(path, "BatchNorm2d", None, {"weight": torch.ones(4)}) for path in ("stem.1", "body.1", "head.1")]
    return Diagnosis(findings, rules, skipped or {}, ignored, Evidence(None, layers), Subject(), None)
