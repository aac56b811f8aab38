"""What a claim is: declared text, independent runs, and a pure rule from their results to a verdict.

A claim is written down before it runs: statement, source, metric, direction and pass rule. The rule stands
twice in its file, as text that is printed and as the code of :meth:`Claim.conclude`, which sees nothing but the
results of runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, TypeAlias

from ..errors import BatchNormError
from ..report.chart import Chart
from .statistics import Interval

__all__ = [
    "About",
    "Claim",
    "Conclusion",
    "Effect",
    "Report",
    "Result",
    "Run",
    "StudyError",
    "Value",
    "Verdict",
    "by_arm",
]

#: What a run may hand back: all of it survives JSON.
Value: TypeAlias = float | int | bool | str | list[float]

#: A run calls this with the share of its work that is done (0 to 1) and a word on where it is.
Report: TypeAlias = Callable[[float, str], None]


class StudyError(BatchNormError, RuntimeError):
    """The study could not run: an unknown claim, missing data, a run that failed."""


class Verdict(Enum):
    """What the data of one study say about a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class About:
    """What a claim declares before anything runs.

    Args:
        id: Its name on the command line.
        title: The claim in a line.
        statement: The claim in plain words.
        formula: What is compared, as a formula.
        source: Paper and section.
        paper: The paper's own number and why it is not comparable with ours; None where none was checked.
        setup: What is run.
        metric: What is measured.
        direction: Which way it must go.
        pass_rule: When each verdict is given.
        budget: Seconds of one processor core for five seeds on the default data, roughly.
        trained: Whether it trains on data (and so follows the choice of a data set).
    """

    id: str
    title: str
    statement: str
    formula: str
    source: str
    paper: str | None
    setup: str
    metric: str
    direction: str
    pass_rule: str
    budget: float
    trained: bool = True


@dataclass(frozen=True)
class Run:
    """One unit of work: an arm of a claim at one seed. Equal runs give equal results, in any process."""

    claim: str
    arm: str
    seed: int
    data: str

    def __str__(self) -> str:
        """The run as a person names it."""
        return f"{self.claim}: {self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """What one run measured, and how long it took."""

    run: Run
    values: Mapping[str, Value]
    seconds: float = 0.0

    def number(self, name: str) -> float:
        """The value of that name, as a number."""
        value = self.values[name]
        if isinstance(value, str | list):
            raise TypeError(f"{self.run}: {name} is {value!r}, not a number")
        return float(value)

    def numbers(self, name: str) -> list[float]:
        """The value of that name, as a list of numbers."""
        value = self.values[name]
        if not isinstance(value, list):
            raise TypeError(f"{self.run}: {name} is {value!r}, not a list")
        return value


@dataclass(frozen=True)
class Effect:
    """A measured effect with its interval, in words and in the unit that a reader sees.

    Args:
        name: What is compared with what.
        interval: The estimate over seeds.
        unit: Its unit: "×" for ratios, "points" for percentage points, or nothing.
        note: What the number alone does not say, such as runs that never reached the target.
        ratio: Whether 1 rather than 0 means "no effect".
    """

    name: str
    interval: Interval
    unit: str = ""
    note: str = ""
    ratio: bool = False

    def __str__(self) -> str:
        """Estimate, unit and interval, as printed in tables."""
        estimate, low, high = (_short(value) for value in _values(self.interval))
        unit = "" if not self.unit else self.unit if self.unit in ("×", "%") else f" {self.unit}"
        return f"{estimate}{unit} (95% interval {low} to {high})"


def _values(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def _short(value: float) -> str:
    # Four figures tell a growth of 1.213 from 1.216; small values keep fewer.
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    figures = 4 if abs(value) >= 1 else 3 if abs(value) >= 0.1 else 2
    return f"{value:#.{figures}g}".rstrip(".").replace("-", "−")


@dataclass(frozen=True)
class Conclusion:
    """What a claim's results say.

    Args:
        verdict: One of three.
        reason: Why, in one sentence with the numbers that decided.
        effects: The effects; the first is the one that decided.
        charts: Pictures of the results.
        findings: What else the results show or do not show, a sentence each.
    """

    verdict: Verdict
    reason: str
    effects: Sequence[Effect]
    charts: Sequence[Chart] = field(default_factory=tuple)
    findings: Sequence[str] = field(default_factory=tuple)


class Claim(ABC):
    """A claim that the study can reproduce or refute.

    Subclasses are frozen dataclasses whose fields are the settings, so that a test can run a smaller one or one
    with the effect removed, and so that an instance can be sent to another process.
    """

    about: ClassVar[About]

    @abstractmethod
    def plan(self, seeds: Sequence[int], data: str) -> list[Run]:
        """All runs, independent of each other."""

    @abstractmethod
    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Does one run of the plan. Deterministic: the run decides everything that is random."""

    @abstractmethod
    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Gives the verdict. Pure: it depends on the results and on nothing else."""


def by_arm(results: Sequence[Result]) -> dict[str, dict[int, Result]]:
    """Results by arm and then by seed, both in order."""
    arms: dict[str, dict[int, Result]] = {}
    for result in sorted(results, key=lambda result: result.run.seed):
        arms.setdefault(result.run.arm, {})[result.run.seed] = result
    return arms
