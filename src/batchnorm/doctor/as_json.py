"""A diagnosis as plain data, and the schema of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .._version import __version__
from .finding import SEVERITIES, Finding, Measurement

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

__all__ = ["SCHEMA", "as_json", "number"]

#: Of what :func:`as_json` gives. It grows when a field is added, taken away or means something else.
VERSION = 1


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis, by :data:`SCHEMA`. ``json.dumps(…, allow_nan=False)`` takes it."""
    return {
        "version": VERSION,
        "tool": {"name": "batchnorm", "version": __version__},
        "ok": diagnosis.ok,
        "counts": {
            severity: sum(each.severity == severity for each in diagnosis.findings) for severity in SEVERITIES[::-1]
        },
        "findings": [_finding(each) for each in diagnosis.findings],
        "ignored": diagnosis.ignored,
        "rules": [
            {"code": rule.code, "name": rule.name, "severity": rule.severity, "summary": rule.summary}
            for rule in diagnosis.rules
        ],
        "skipped": dict(diagnosis.skipped),
        "layers": [
            {"path": layer.path, "kind": layer.kind or None, "channels": layer.channels}
            for layer in diagnosis.evidence.layers
        ],
        "unread": dict(diagnosis.evidence.unread),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "name": finding.name,
        "layer": finding.layer,
        "severity": finding.severity,
        "message": finding.message,
        "evidence": {name: measurement(measured) for name, measured in finding.evidence.items()},
        "mend": finding.mend,
        "fix": None if finding.fix is None else finding.fix.description,
    }


def measurement(measured: Measurement) -> dict[str, Any]:
    """A measurement; ``healthy`` is null where there is no threshold."""
    return {
        "value": number(measured.value),
        "threshold": None if measured.threshold is None else number(measured.threshold),
        "healthy": None if measured.threshold is None else measured.healthy,
        "unit": measured.unit,
    }


def number(value: Any) -> int | float | str:
    """A value that strict JSON has: what is not finite becomes a word (JSON has no NaN).

    Example:
        >>> number(0.5), number(float("nan")), number(-float("inf")), number("float16")
        (0.5, 'nan', '-inf', 'float16')
    """
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, str | int):
        return value
    plain = float(value)
    if not math.isfinite(plain):
        return str(plain)
    # Scalars of NumPy and torch are no Python numbers, and a count of theirs stays one.
    return plain if isinstance(value, float) or not plain.is_integer() else int(plain)


_VALUE = {"type": ["number", "string"]}
_TEXT = {"type": "string", "minLength": 1}
_CODE = {"type": "string", "pattern": "^BN[0-9]{3}$"}
_COUNT = {"type": "integer", "minimum": 0}
_SEVERITY = {"enum": list(SEVERITIES)}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


#: JSON Schema (draft 2020-12) of :func:`as_json`.
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "batchnorm doctor",
    "description": "What is wrong with the batch norm in a model.",
    **_object(
        version={"const": VERSION, "description": "Of this format."},
        tool=_object(name={"const": "batchnorm"}, version=_TEXT),
        ok={"type": "boolean", "description": "Neither an error nor a warning."},
        counts={**_object(error=_COUNT, warning=_COUNT, info=_COUNT), "description": "Findings, by severity."},
        findings={
            "description": "The worst first, then in the order of rules and layers.",
            "type": "array",
            "items": _object(
                rule=_CODE,
                name=_TEXT,
                layer={"type": "string", "description": "Path in the model; empty for the model itself."},
                severity=_SEVERITY,
                message=_TEXT,
                evidence={
                    "description": "What was measured, by name.",
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": _object(
                        value={**_VALUE, "description": 'Not finite: "nan", "inf" or "-inf".'},
                        threshold={"type": ["number", "string", "null"], "description": "null: it has none."},
                        healthy={"enum": ["at most", "at least", "equal to", None], "description": "Of the threshold."},
                        unit={"type": "string"},
                    ),
                },
                mend={**_TEXT, "description": "A line of code."},
                fix={"type": ["string", "null"], "description": "What the automatic mend does; null: there is none."},
            ),
        },
        ignored={**_COUNT, "description": "Findings left out for their layers."},
        rules={
            "description": "Those that were run.",
            "type": "array",
            "items": _object(code=_CODE, name=_TEXT, severity=_SEVERITY, summary=_TEXT),
        },
        skipped={
            "description": "Rules that could not be run, by code, and why.",
            "type": "object",
            "propertyNames": _CODE,
            "additionalProperties": _TEXT,
        },
        layers={
            "description": "The batch norms, in the order of calls where batches were run.",
            "type": "array",
            "items": _object(
                path={"type": "string"},
                kind={"type": ["string", "null"], "description": "The class; null of a checkpoint."},
                channels=_COUNT,
            ),
        },
        unread={
            "description": "Paths where running statistics lie, or are used, that no rule looks at, and why.",
            "type": "object",
            "additionalProperties": _TEXT,
        },
    ),
}
