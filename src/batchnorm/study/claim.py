"""What a claim is: declared text, independent runs, and a pure rule from their results to a verdict.

A claim is written down before it runs: statement, source, metric, direction and pass rule. The rule stands
twice in its file, as text that is printed and as the code of :meth:`Claim.conclude`, which sees nothing but the
results of runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar, TypeAlias

from ..report.chart import Figure
from ..report.number import spoken
from .data import Source, Split
from .statistics import Interval
from .subjects import Subject, check

__all__ = [
    "TIERS",
    "About",
    "Claim",
    "Conclusion",
    "Effect",
    "Experiment",
    "Report",
    "Result",
    "Run",
    "SubjectClaim",
    "Topic",
    "Value",
    "Verdict",
    "by_arm",
]

#: What a run may hand back: all of it survives JSON.
Value: TypeAlias = float | int | bool | str | list[float]

#: A run calls this with the share of its work that is done (0 to 1) and a word on where it is.
Report: TypeAlias = Callable[[float, str], None]


#: How much a study costs, from least to most; a tier holds the claims of those before it.
TIERS = ("quick", "standard", "full")


class Topic(Enum):
    """What a claim is about, as the overview tells it."""

    DOES = "what batch norm does"
    CONTESTED = "what is contested"
    HURTS = "what hurts"


class Verdict(Enum):
    """What the data of one study say about a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class About:
    """What a claim declares before anything runs.

    Args:
        id: Its name on the command line.
        topic: Where the overview tells it.
        title: The claim in a line.
        statement: The claim in plain words.
        formula: What is compared, as a formula in LaTeX.
        symbols: What the letters in it are, in a sentence; empty where it says so itself.
        source: Paper and section.
        paper: The paper's own number and why it is not comparable with ours; None where none was checked.
        setup: What is run; of a :class:`SubjectClaim` without the network itself, which describes itself.
        metric: What is measured.
        direction: Which way it must go.
        pass_rule: When each verdict is given.
        control: What :meth:`Claim.without_effect` takes away, so that the verdict must fail.
        budget: Seconds of one processor core for five seeds on the default data, roughly.
        tier: The cheapest tier that it is part of, one of :data:`TIERS`.
        calculation: Whether an identity, a theorem or a formula is checked on numbers, rather than an experiment
            made whose outcome nothing guarantees.
        smallest: Of the images that ``--data`` chooses, those for training that it needs at least, such as its batch
            size; 0 where it uses none of them.
    """

    id: str
    topic: Topic
    title: str
    statement: str
    formula: str
    symbols: str = ""
    source: str
    paper: str | None
    setup: str
    metric: str
    direction: str
    pass_rule: str
    control: str
    budget: float
    tier: str = "quick"
    calculation: bool = False
    smallest: int = 0


@dataclass(frozen=True)
class Run:
    """One unit of work: an arm of an experiment at one seed. Equal runs give equal results, in any process."""

    claim: str
    arm: str
    seed: int
    data: Source | None

    @property
    def source(self) -> Source:
        """Where its images come from.

        Raises:
            TypeError: If its experiment declares that it uses none.
        """
        if self.data is None:
            raise TypeError(f"{self}: it has no images; its experiment declares none")
        return self.data

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
        """Estimate, unit and interval, as printed in tables; a dash where there is no estimate."""
        if math.isnan(self.interval.estimate):
            return "–"
        estimate, low, high = (_short(value) for value in self.interval.numbers)
        unit = "" if not self.unit else self.unit if self.unit in ("×", "%") else f" {self.unit}"
        return f"{estimate}{unit} (95% interval {low} to {high})"


def _short(value: float) -> str:
    # Four figures tell a growth of 1.213 from 1.216; small values keep fewer.
    return spoken(value, 4 if abs(value) >= 1 else 3 if abs(value) >= 0.1 else 2, zeros=True)


@dataclass(frozen=True)
class Conclusion:
    """What a claim's results say.

    Args:
        verdict: One of three.
        reason: Why, in one sentence with the numbers that decided.
        effects: The effects; the first is the one that decided.
        charts: Pictures of the results.
        findings: What else the results show or do not show, a sentence each.
        headline: A picture for the summary at the top of the page: training with batch norm and without.
        short: For the summary's row, where the first effect alone would mislead: an effect, and of what.
    """

    verdict: Verdict
    reason: str
    effects: Sequence[Effect]
    charts: Sequence[Figure] = field(default_factory=tuple)
    findings: Sequence[str] = field(default_factory=tuple)
    headline: Figure | None = None
    short: tuple[str, str] | None = None


class Experiment(ABC):
    """Work of a study as independent runs.

    Subclasses are frozen dataclasses whose fields are the settings, so that a test can run a smaller one, that an
    instance can be sent to another process, and that a kept result can be told from one of other settings.
    """

    @property
    @abstractmethod
    def id(self) -> str:
        """Its name, unique in a study."""

    @property
    @abstractmethod
    def budget(self) -> float:
        """Seconds of one processor core for five seeds on the default data, roughly."""

    @property
    @abstractmethod
    def smallest(self) -> int:
        """Training images that it needs at least; 0 where it uses none."""

    @abstractmethod
    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """All runs, independent of each other."""

    @abstractmethod
    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Does one run of the plan. Deterministic: the run decides everything that is random."""


class Claim(Experiment):
    """A claim that the study can reproduce or refute."""

    about: ClassVar[About]

    @property
    def id(self) -> str:
        """Its name on the command line."""
        return self.about.id

    @property
    def budget(self) -> float:
        """As declared."""
        return self.about.budget

    @property
    def smallest(self) -> int:
        """As declared."""
        return self.about.smallest

    def at(self, tier: str) -> Claim:
        """The claim as a tier of :data:`TIERS` runs it: a dearer one may have more arms."""
        return self

    @abstractmethod
    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Gives the verdict. Pure: it depends on the results and on nothing else."""

    @abstractmethod
    def without_effect(self) -> Claim:
        """The same claim with the effect taken away, as ``about.control`` says: it must not be reproduced."""


@dataclass(frozen=True, kw_only=True)
class SubjectClaim(Claim):
    """A claim that can be put to a network of the user's.

    Args:
        subject: The network that its arms are derived from.
    """

    subject: Subject

    #: What it derives from the network: names of :data:`batchnorm.study.arms.ARMS`.
    arms_of_subject: ClassVar[tuple[str, ...]] = ("batch",)

    def check(self, parts: Split) -> None:
        """Refuses a network that the claim cannot be put to, before anything is trained.

        Args:
            parts: Images and labels that it must take.

        Raises:
            StudyError: If it cannot be built, lacks an arm, or does not take the images.
        """
        check(self.subject, parts, self.arms_of_subject)

    def on(self, subject: Subject) -> SubjectClaim:
        """The same claim about another network."""
        return replace(self, subject=subject)


def by_arm(results: Sequence[Result]) -> dict[str, dict[int, Result]]:
    """Results by arm and then by seed, both in order."""
    arms: dict[str, dict[int, Result]] = {}
    for result in sorted(results, key=lambda result: result.run.seed):
        arms.setdefault(result.run.arm, {})[result.run.seed] = result
    return arms
