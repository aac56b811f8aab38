"""A diagnosis as a SARIF 2.1.0 log (OASIS, 2020, with errata 01): the format that code scanning services read."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .._version import __version__
from .as_json import measurement
from .finding import Finding, Severity
from .registry import rule_of
from .rule import Rule

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

__all__ = ["Place", "as_sarif", "place_of"]

_LEVELS: dict[Severity, str] = {"info": "note", "warning": "warning", "error": "error"}


@dataclass(frozen=True)
class Place:
    """A file, and where in it.

    Attributes:
        path: Of the file.
        line: From 1; None for files that have no lines.
    """

    path: Path
    line: int | None = None


def place_of(value: object) -> Place | None:
    """Where a function or a class is written; None where that is not in a file of the working directory."""
    try:
        path = Path(inspect.getsourcefile(value) or "").resolve()  # type: ignore[arg-type]
        line = inspect.getsourcelines(value)[1]  # type: ignore[arg-type]
    except (TypeError, OSError):
        return None
    folder = Path.cwd()
    installed = "site-packages" in path.parts
    return Place(path, max(line, 1)) if path.is_relative_to(folder) and not installed else None


def as_sarif(diagnosis: Diagnosis, place: Place | None = None) -> dict[str, Any]:
    """The log.

    A finding's place is the layer's path, as a logical location. Services that show findings beside code need a file as
    well.

    Args:
        diagnosis: Of which.
        place: The file that stands for the model; that of its class if it is None.
    """
    if place is None and diagnosis.evidence.model is not None:
        place = place_of(type(diagnosis.evidence.model))
    rules = sorted([*diagnosis.rules, *map(rule_of, diagnosis.skipped)], key=lambda rule: rule.code)
    numbers = {rule.code: number for number, rule in enumerate(rules)}
    return {
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "batchnorm doctor",
                        "version": __version__,
                        "rules": [_descriptor(rule) for rule in rules],
                    }
                },
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolConfigurationNotifications": [
                            {
                                "level": "note",
                                "message": {"text": _text(f"{code} was not checked: {reason}")},
                                "associatedRule": {"id": code, "index": numbers[code]},
                            }
                            for code, reason in diagnosis.skipped.items()
                        ]
                        + [
                            {
                                "level": "warning",
                                "message": {"text": _text(f"{path or '(the model itself)'} was not looked at: {why}")},
                            }
                            for path, why in diagnosis.evidence.unread.items()
                        ],
                    }
                ],
                "columnKind": "unicodeCodePoints",
                "results": [_result(each, numbers[each.rule], place) for each in diagnosis.findings],
            }
        ],
    }


def _descriptor(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": _text(rule.summary)},
        "help": {"text": _text(rule.page), "markdown": _text(rule.page)},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
    }


def _result(finding: Finding, rule: int, place: Place | None) -> dict[str, Any]:
    where = finding.layer or "(the model itself)"
    words = f"{where}: {finding.message} Mend: {finding.mend}"
    logical = {"fullyQualifiedName": where, "name": where.rpartition(".")[2], "kind": "member"}
    location: dict[str, Any] = {"logicalLocations": [logical]}
    if place is not None:
        location["physicalLocation"] = _physical(place)
    # Services tell findings apart by this one; else all of a rule's at one line of the file would be the same.
    same = hashlib.sha256(f"{finding.rule} {finding.layer}".encode()).hexdigest()[:32]
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule,
        "level": _LEVELS[finding.severity],
        "message": {"text": _text(words)},
        "locations": [location],
        "partialFingerprints": {"primaryLocationLineHash": f"{same}:1"},
        "properties": {
            "evidence": {name: measurement(measured) for name, measured in finding.evidence.items()},
            "mend": finding.mend,
            "fix": None if finding.fix is None else finding.fix.description,
        },
    }


def _physical(place: Place) -> dict[str, Any]:
    path, folder = place.path.resolve(), Path.cwd()
    if path.is_relative_to(folder):
        artifact = {"uri": quote(path.relative_to(folder).as_posix()), "uriBaseId": "%SRCROOT%"}
    else:
        artifact = {"uri": path.as_uri()}
    physical: dict[str, Any] = {"artifactLocation": artifact}
    if place.line is not None:
        physical["region"] = {"startLine": place.line}
    return physical


def _text(words: str) -> str:
    """As the standard has it: single braces are places for arguments (3.11.5)."""
    return words.replace("{", "{{").replace("}", "}}")
