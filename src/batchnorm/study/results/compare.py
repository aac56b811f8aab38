"""Two studies side by side: which verdicts changed, how far the effects lie apart, and what was not the same.

An effect's standard error follows from its interval: half its width over the t of its seeds. The standard error of the
difference of two effects is √(s₁² + s₂²), as of two independent means. Of ratios all of this is of their logarithms.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..claim import Effect
from ..statistics import CONFIDENCE, Interval
from .kept import KeptClaim, KeptStudy

__all__ = ["Change", "Comparison", "Pair", "compare"]

_CLOSE = 1e-6  # of an interval's width: how unequal its two halves may be by rounding


@dataclass(frozen=True)
class Pair:
    """The same effect in both studies."""

    first: Effect
    second: Effect

    @property
    def overlap(self) -> bool:
        """Whether the two intervals have numbers in common."""
        return (
            self.first.interval.low <= self.second.interval.high
            and self.second.interval.low <= self.first.interval.high
        )

    @cached_property
    def apart(self) -> tuple[float, float] | None:
        """The difference, second minus first, and its standard error: of logarithms where it is a ratio.

        None where an interval does not tell: it is not symmetric, it is of one seed, or it has no end.
        """
        errors = [_standard_error(effect.interval, self.ratio) for effect in (self.first, self.second)]
        if self.first.unit != self.second.unit or any(error is None for error in errors):
            return None
        one, two = (
            math.log(effect.interval.estimate) if self.ratio else effect.interval.estimate
            for effect in (self.first, self.second)
        )
        return two - one, math.hypot(*(error for error in errors if error is not None))

    @property
    def ratio(self) -> bool:
        """Whether the effects are compared as ratios."""
        return self.first.ratio and self.second.ratio


def _standard_error(span: Interval, ratio: bool) -> float | None:
    from scipy.stats import t  # noqa: PLC0415 - a tool; the library itself does not need scipy

    ends = (span.low, span.estimate, span.high)
    if span.count < 2 or not all(map(math.isfinite, ends)) or (ratio and min(ends) <= 0):
        return None
    low, middle, high = map(math.log, ends) if ratio else ends
    if abs((high - middle) - (middle - low)) > _CLOSE * (high - low) + 1e-12 * abs(middle):
        return None
    return (high - low) / 2 / float(t.ppf(0.5 + CONFIDENCE / 2, span.count - 1))


@dataclass(frozen=True)
class Change:
    """A claim that is in both studies.

    Args:
        first: What the first study says.
        second: What the second says.
        pairs: Effects that both have, in the first's order.
        only: Names of effects that one of them has alone, by the study's number.
    """

    first: KeptClaim
    second: KeptClaim
    pairs: Sequence[Pair]
    only: tuple[Sequence[str], Sequence[str]]

    @property
    def changed(self) -> bool:
        """Whether the verdict is another."""
        return self.first.verdict is not self.second.verdict


@dataclass(frozen=True)
class Comparison:
    """Two studies, claim by claim.

    Args:
        first: A study.
        second: Another.
        changes: Claims in both, those whose verdict changed first.
        only: Claims that one of them has alone, by the study's number.
        circumstances: What was not the same: its name, and what it was in each.
    """

    first: KeptStudy
    second: KeptStudy
    changes: Sequence[Change]
    only: tuple[Sequence[KeptClaim], Sequence[KeptClaim]]
    circumstances: Sequence[tuple[str, str, str]]

    @property
    def stated(self) -> set[str]:
        """What both state of what they ran on: a file of an older version states less."""
        return {*self.first.environment} & {*self.second.environment}


def compare(first: KeptStudy, second: KeptStudy) -> Comparison:
    """Compares two studies."""
    both = [_change(claim, second.claims[name]) for name, claim in first.claims.items() if name in second.claims]
    return Comparison(
        first,
        second,
        sorted(both, key=lambda change: not change.changed),
        (_alone(first, second), _alone(second, first)),
        [*_circumstances(first.environment, second.environment), *_settings(both)],
    )


def _alone(study: KeptStudy, other: KeptStudy) -> list[KeptClaim]:
    return [claim for name, claim in study.claims.items() if name not in other.claims]


def _change(first: KeptClaim, second: KeptClaim) -> Change:
    before, after = ({effect.name: effect for effect in claim.effects} for claim in (first, second))
    return Change(
        first,
        second,
        [Pair(effect, after[name]) for name, effect in before.items() if name in after],
        ([name for name in before if name not in after], [name for name in after if name not in before]),
    )


# What a study notes of itself and what is no circumstance of its numbers.
_ASIDE = ("seconds", "runs", "kept", "date", "workers")
_NAMES = {"samples": "images a seed, at most", "image_size": "height and width of the images", "fingerprint": "images"}
_DIGITS = 12  # of a fingerprint: as many tell two apart


def _circumstances(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What both state of what they ran on, and differs: a file of an older format states less."""
    before, after = _flat(first), _flat(second)
    return [(name, before[name], after[name]) for name in before if name in after and before[name] != after[name]]


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in environment.items():
        if isinstance(value, dict):
            found |= {f"{name}: {part}": str(number) for part, number in value.items()}
        elif isinstance(value, list):
            found[_NAMES.get(name, name)] = ", ".join(map(str, value))
        elif name == "fingerprint" and isinstance(value, str):
            found[_NAMES[name]] = f"fingerprint {value[:_DIGITS]}"
        elif name not in _ASIDE:
            found[_NAMES.get(name, name)] = "none" if value is None else str(value)
    return found


def _settings(changes: Sequence[Change]) -> list[tuple[str, str, str]]:
    """Settings of claims that ran otherwise, such as their network."""
    rows = []
    for change in changes:
        before, after = _fields(change.first.settings), _fields(change.second.settings)
        for name in dict.fromkeys([*before, *after]):
            one, two = before.get(name, "has none"), after.get(name, "has none")
            if one != two:
                rows.append((f"{change.first.id}: {name}", one, two))
    return rows


def _fields(settings: str) -> dict[str, str]:
    """A dataclass's fields from how it writes itself; as a whole where that is something else."""
    try:
        call = ast.parse(settings, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {"settings": settings}
    if not isinstance(call, ast.Call) or any(each.arg is None for each in call.keywords):
        return {"settings": settings}
    return {str(each.arg): ast.unparse(each.value) for each in call.keywords}
