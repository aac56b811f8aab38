"""``batchnorm doctor --fix``: mends, and says which of them a file of tensors holds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..doctor.as_text import printable
from ..doctor.diagnosis import Diagnosis
from ..doctor.finding import SEVERITIES, Finding, Fix, Subject
from ..doctor.keeping import same_bits

__all__ = ["Mended", "mend"]


@dataclass(frozen=True)
class Mended:
    """What came of it.

    Attributes:
        saved: Findings whose mend changed what a file of tensors brings.
        unsaved: Whose mend changed only what stands in code, such as a layer's momentum or dtype.
        left: What is wrong with the model that loads the file: what is found now, and ``unsaved``.
    """

    saved: tuple[Finding, ...]
    unsaved: tuple[Finding, ...]
    left: Diagnosis

    @property
    def lines(self) -> list[str]:
        """What a user is told: a line for each kind of mend."""
        told = [f"mended: {where}: {each.rule}: {_what(each)}" for where, each in _alike(self.saved, _what)]
        told += [
            f"not in the file, which holds values: {where}: {each.rule}: put it into your code: {each.mend}"
            for where, each in _alike(self.unsaved, lambda each: "")
        ]
        open = len(self.left.findings) - len(self.unsaved)
        if open:
            told.append(f"not mended, for it takes a decision: {open} of the findings")
        return [printable(line) for line in told]


def _what(finding: Finding) -> str:
    return "" if finding.fix is None else finding.fix.description


def _alike(findings: Sequence[Finding], what: Callable[[Finding], str]) -> list[tuple[str, Finding]]:
    """The first finding of each rule and kind, and at which layers there is such a one."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for each in findings:
        groups.setdefault((each.rule, what(each)), []).append(each)
    where = {key: [each.layer or "(the model itself)" for each in group] for key, group in groups.items()}
    return [(", ".join(where[key]), group[0]) for key, group in groups.items()]


def mend(
    diagnosis: Diagnosis,
    state: Callable[[], Mapping[str, Any]],
    again: Callable[[], Diagnosis] | None,
    *,
    loaded: bool,
) -> Mended:
    """Makes the safe mends, all or none.

    Args:
        diagnosis: Of which model.
        state: What would be saved.
        again: Diagnoses once more; None where that cannot be done, and what is mended is then taken as gone.
        loaded: Whether a model will load the file. It keeps its own dtypes, so a mend of these is none that a file
            brings.

    Raises:
        FixError: As :meth:`Diagnosis.fix`.
    """
    watch = _Changes(state, loaded)
    findings = [each if each.fix is None else replace(each, fix=watch.over(each)) for each in diagnosis.findings]
    mended = replace(diagnosis, findings=tuple(findings)).fix()
    saved = tuple(each for each in mended if watch.changed.get(_key(each)))
    unsaved = tuple(each for each in mended if not watch.changed.get(_key(each)))
    after = diagnosis if again is None else again()
    gone = {(each.rule, each.layer) for each in mended}
    found = [each for each in after.findings if (each.rule, each.layer) not in gone]
    # Nothing that a file could hold mends these.
    unmended = [replace(each, fix=None) for each in unsaved]
    return Mended(saved, unsaved, replace(after, findings=_sorted([*found, *unmended])))


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda each: (-SEVERITIES.index(each.severity), each.rule)))


def _key(finding: Finding) -> Hashable:
    fix = finding.fix
    return (finding.rule, finding.layer, finding.message) if fix is None or fix.key is None else fix.key


class _Changes:
    """Which mends change what is saved, or what a model that loads it gets."""

    def __init__(self, state: Callable[[], Mapping[str, Any]], loaded: bool) -> None:
        self._state = state
        self._dtypes = {name: each.dtype for name, each in state().items() if isinstance(each, Tensor) and loaded}
        self._last = self._copied()
        self.changed: dict[Hashable, bool] = {}

    def over(self, finding: Finding) -> Fix:
        """The mend of a finding, watched."""
        fix = finding.fix
        assert fix is not None
        key, apply = _key(finding), fix.apply

        def watched(subject: Subject) -> None:
            apply(subject)
            now = self._copied()
            self.changed[key] = self.changed.get(key, False) or not _same(self._last, now)
            self._last = now

        return replace(fix, apply=watched)

    def _copied(self) -> dict[str, Any]:
        return {
            name: each.detach().to(self._dtypes.get(name, each.dtype), copy=True) if isinstance(each, Tensor) else each
            for name, each in self._state().items()
        }


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    tensors = [{name: each for name, each in state.items() if isinstance(each, Tensor)} for state in (one, other)]
    return tensors[0].keys() == tensors[1].keys() and all(
        same_bits(each, tensors[1][name]) for name, each in tensors[0].items()
    )
