"""What came of looking at a model: findings, what was not looked at, and the mends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import BatchNormError
from .evidence import Evidence
from .finding import SEVERITIES, Finding, Fix, Severity, Subject
from .keeping import Keeping
from .ranks import Accord
from .rule import Rule

__all__ = ["Diagnosis", "FixError"]


class FixError(BatchNormError, RuntimeError):
    """A mend raised, or what it mends was found again; everything is as it was."""


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What :func:`batchnorm.diagnose` gives; ``print`` it for a report.

    Attributes:
        findings: The worst first, then in the order of rules and layers.
        rules: Those that were run.
        skipped: Codes of those that could not be, and why.
        ignored: How many findings were left out for their layers.
        evidence: What they were made of.
    """

    findings: tuple[Finding, ...]
    rules: tuple[Rule, ...]
    skipped: Mapping[str, str]
    ignored: int
    evidence: Evidence
    _subject: Subject = field(repr=False)
    _again: Callable[[], Diagnosis] | None = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return not self.at_least("warning")

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings that are at least so bad."""
        return tuple(each for each in self.findings if SEVERITIES.index(each.severity) >= SEVERITIES.index(severity))

    def fix(self) -> tuple[Finding, ...]:
        """Makes the safe mends, in place: all of them, or, where one raises or does not help, none.

        Afterwards the model is looked at once more, as it was before; where a mended finding is there again, everything
        is put back. (Not where the batches cannot be iterated twice: then the mends are trusted.) Of several processes
        each calls this, and where it fails on one it fails on all.

        Returns:
            The findings that are mended.

        Raises:
            FixError: A mend raised or did not help; model, optimizer and statistics are as they were. On any other
                exception, an interrupt too, they are so as well.
            RankError: That happened on another process.
        """
        chosen = {each.fix.key or id(each): each.fix for each in self.findings if each.fix is not None}
        mended = tuple(each for each in self.findings if each.fix is not None)
        accord = Accord(self.evidence.ranks is not None, self.evidence.model)
        if not accord.any(bool(mended)):
            return ()
        subject = self._subject
        keeping = None if subject.model is None else Keeping(subject.model, subject.optimizer)
        state = dict(subject.state) if subject.state is not None else None
        try:
            _apply_all(chosen, subject, accord)
            self._check(mended, accord)
        except BaseException:
            try:
                _undo(keeping, subject, state)
            except BaseException:
                _undo(keeping, subject, state)  # interrupted here: the whole of it again
                raise
            raise
        return mended

    def _check(self, mended: Sequence[Finding], accord: Accord) -> None:
        if self._again is None:
            return
        still = {(each.rule, each.layer) for each in self._again().findings}

        def none_left() -> None:
            left = [each for each in mended if (each.rule, each.layer) in still]
            if left:
                raise FixError(
                    f"mended, and found again: {'; '.join(f'{each.rule} at {each.layer}' for each in left)}.",
                    "this is a fault of the rule: mend it by hand, as its finding says, and tell us.",
                )

        accord.step(none_left)

    def to_json(self) -> dict[str, Any]:
        """As plain data, by the schema in the docs (doctor.md)."""
        from .as_json import as_json  # noqa: PLC0415 - only where it is asked for

        return as_json(self)

    def to_sarif(self) -> dict[str, Any]:
        """As a SARIF 2.1.0 log, for tools that show findings."""
        from .as_sarif import as_sarif  # noqa: PLC0415

        return as_sarif(self)

    def to_html(self, path: str | Path) -> Path:
        """Writes the X-ray page: one file, with everything in it.

        Raises:
            ModuleNotFoundError: plotly, which draws the charts, is not installed.
        """
        from .xray import write  # noqa: PLC0415

        return write(self, Path(path))

    def __str__(self) -> str:
        from .as_text import as_text  # noqa: PLC0415

        return as_text(self)


def _apply_all(chosen: Mapping[str | int, Fix], subject: Subject, accord: Accord) -> None:
    """First those of one layer, then those of the whole model, which need what the others have mended."""
    shared = sorted(key for key in chosen if isinstance(key, str))
    if not accord.same(shared):
        # They may exchange numbers, for which the others would wait.
        raise FixError(
            f"the ranks need different mends of the whole model (this one: {', '.join(shared) or 'none'}).",
            "diagnose with select= what all ranks have, and mend the rest by hand.",
        )

    def each_for_itself() -> None:
        for key, fix in chosen.items():
            if not isinstance(key, str):
                _apply(fix, subject)

    accord.step(each_for_itself)
    for key in shared:
        accord.step(partial(_apply, chosen[key], subject))


def _apply(fix: Fix, subject: Subject) -> None:
    try:
        fix.apply(subject)
    except Exception as error:
        raise FixError(
            f"this mend raised {type(error).__name__}: {error} ({fix.description}).",
            "mend the others by hand, or leave this rule out by ignore=.",
        ) from error


def _undo(keeping: Keeping | None, subject: Subject, state: Mapping[str, Any] | None) -> None:
    if keeping is not None:
        keeping.restore()
    if state is not None and subject.state is not None:
        subject.state.clear()
        subject.state.update(state)
