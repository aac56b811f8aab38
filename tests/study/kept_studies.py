"""A finished study of a claim that runs in no time, in a folder."""

import math
from collections.abc import Sequence
from pathlib import Path

from batchnorm.study import Outcome, Result, registered
from batchnorm.study.engine import conclude
from batchnorm.study.environment import Environment
from batchnorm.study.results.export import write

CLAIM = "error-surface"


def environment(**stated: object) -> Environment:
    """What a study of five seeds ran on."""
    fixed = Environment(
        {"batchnorm": "0", "torch": "1"}, "a processor", 1, "2026-01-02 03:04 UTC", [0, 1, 2, 3, 4], "d", 1.0
    )
    return Environment(**{**vars(fixed), **stated})


def run(name: str = CLAIM) -> list[Outcome]:
    """Runs a claim here; one value more is none that JSON holds."""
    claim = registered()[name]
    results = []
    for each in claim.plan(range(5), None):
        values = claim.execute(each, lambda done, note: None)
        extra = {"not finite": [1.0, math.nan, -math.inf], "alone": math.inf, "whole": 3, "yes": True, "none": []}
        results.append(Result(each, {**values, **extra}, 0.25))
    return conclude([claim], {name: results}, range(5))


def folder(at: Path, outcomes: Sequence[Outcome], **stated: object) -> Path:
    """Writes a study; gives its folder."""
    return write(outcomes, environment(**stated), at).parent
