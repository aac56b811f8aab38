"""A diagnosis as lines of text: one line a finding that can be searched for, and what stands behind it below."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from .finding import SEVERITIES, Finding, Measurement
from .rule import Need

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

__all__ = ["Line", "as_text", "printable", "report"]

#: Pieces of a line with what each is: a severity, "layer", "note" or nothing.
Line: TypeAlias = list[tuple[str, str]]

# So many findings of one kind are told one by one if their numbers differ; of more these are told together, …
_TOLD = 3
# … and so many of their lines are shown where the rest is only counted.
_SHOWN = 5

# What ends a reason for which rules were skipped: in Python, and on the command line.
_GIVE = {
    Need.BATCHES: ("batches=", "--batches TARGET"),
    Need.OPTIMIZER: ("optimizer=", "--optimizer TARGET"),
}


def as_text(diagnosis: Diagnosis, *, whole: bool = False, command_line: bool = False) -> str:
    """The report.

    Args:
        diagnosis: Of which.
        whole: Whether each finding has its line. Else of many findings of one kind the first have theirs, and the
            others are counted by their layers' paths, with ``*`` for numbers.
        command_line: Whether what to give is named as an option rather than as an argument.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2, momentum=0.9))
        >>> print(as_text(batchnorm.diagnose(model, select=["BN011"])))
        0: warning BN011 inverted-momentum: momentum is 0.9: the running statistics are those of about 1 batch.
            momentum: 0.9 (healthy: at most 0.5)
            batches that weigh: 1.22 (healthy: at least 3)
            mend: model.get_submodule("0").momentum = 0.1
            fix: sets momentum to 0.1
        <BLANKLINE>
        1 warning; 1 batch norm, 1 rule
        1 safe mend: .fix()
    """
    lines = report(diagnosis, whole=whole, command_line=command_line)
    return "\n".join("".join(text for _, text in line) for line in lines)


def report(diagnosis: Diagnosis, *, whole: bool = False, command_line: bool = False) -> Iterator[Line]:
    """The same with what each piece is, for whoever has colours."""
    for group in _alike(diagnosis.findings):
        same = all(group[0].evidence == each.evidence for each in group)
        together = len(group) > (1 if same else _TOLD)
        yield from _told_together(group, whole) if together else _told(group)
        yield []
    yield from _summary(diagnosis, command_line)


def _alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of one rule, equally bad and with numbers of the same names."""
    groups: dict[object, list[Finding]] = {}
    for each in findings:
        groups.setdefault((each.severity, each.rule, *each.evidence, each.fix is None), []).append(each)
    return list(groups.values())


def _told(findings: Sequence[Finding]) -> Iterator[Line]:
    for number, each in enumerate(findings):
        if number:
            yield []
        yield _first_line(each)
        for name, measured in each.evidence.items():
            yield _detail(name, str(measured))
        yield _detail("mend", each.mend)
        if each.fix is not None:
            yield _detail("fix", each.fix.description)


def _told_together(findings: Sequence[Finding], whole: bool) -> Iterator[Line]:
    shown = findings if whole or len(findings) <= _SHOWN + 1 else findings[:_SHOWN]
    for each in shown:
        yield _first_line(each)
    if rest := findings[len(shown) :]:
        paths = Counter(re.sub(r"\d+", "*", each.layer) for each in rest)
        where = ", ".join(f"{path} ({count})" if count > 1 else path for path, count in paths.items())
        yield [(rest[0].severity, f"and {len(rest)} more of {rest[0].rule}"), ("", printable(f" at {where}"))]
    for name in findings[0].evidence:
        yield _detail(name, _range([each.evidence[name] for each in findings]))
    first = findings[0]
    others = "" if all(each.mend == first.mend for each in findings) else "   # and so at the others"
    yield _detail("mend", first.mend + others)
    if first.fix is not None:
        others = "" if all(each.fix == first.fix for each in findings) else ", and so at the others"
        yield _detail("fix", first.fix.description + others)


def _first_line(finding: Finding) -> Line:
    """The same words as ``str(finding)``."""
    layer, colon, _ = str(finding).partition(f": {finding.severity} {finding.rule}")
    return [
        ("layer", printable(layer)),
        ("", colon[:2]),
        (finding.severity, colon[2:]),
        ("", printable(f" {finding.name}: {finding.message}")),
    ]


def _detail(name: str, words: str) -> Line:
    return [("note", f"    {name}: "), ("", printable(words))]


def _range(measured: Sequence[Measurement]) -> str:
    """One measurement at several layers."""
    words = list(dict.fromkeys(map(str, measured)))
    if len(words) == 1:
        return words[0]
    numbers = [each for each in measured if not isinstance(each.value, str)]
    if len(numbers) < len(measured):
        return ", ".join(words) if len(words) <= _SHOWN else f"{len(words)} different ones, {words[0]} among them"
    low, high = (chosen(numbers, key=lambda each: float(each.value)) for chosen in (min, max))
    least, most = (str(Measurement(each.value)) for each in (low, high))
    return str(high).replace(most, f"{least} to {most}", 1) if _same_line(measured) else f"{low} to {high}"


def _same_line(measured: Sequence[Measurement]) -> bool:
    return len({(each.threshold, each.healthy, each.unit) for each in measured}) == 1


def _summary(diagnosis: Diagnosis, command_line: bool) -> Iterator[Line]:
    counts = [
        (severity, sum(each.severity == severity for each in diagnosis.findings)) for severity in SEVERITIES[::-1]
    ]
    line: Line = []
    for severity, count in counts:
        if count:
            line += [("", ", ")] if line else []
            line.append((severity, counted(count, severity)))
    looked = f"{counted(len(diagnosis.evidence.layers), 'batch norm')}, {counted(len(diagnosis.rules), 'rule')}"
    yield [*(line or [("", "no findings")]), ("", f"; {looked}")]
    if diagnosis.ignored:
        yield [("note", f"{counted(diagnosis.ignored, 'finding')} left out for their layers (per-layer ignores)")]
    fixes = sum(each.fix is not None for each in diagnosis.findings)
    if fixes:
        safe = counted(fixes, "safe mend")
        yield [("note", f"{safe}: --fix FILE saves what a file holds of them" if command_line else f"{safe}: .fix()")]
    reasons: dict[str, list[str]] = {}
    for code, reason in diagnosis.skipped.items():
        reasons.setdefault(_reason(reason, command_line), []).append(code)
    for reason, codes in reasons.items():
        yield [("note", printable(f"not checked: {', '.join(codes)}: {reason}"))]
    unread: dict[str, list[str]] = {}
    for path, why in diagnosis.evidence.unread.items():
        unread.setdefault(why, []).append(path or "(the model itself)")
    for why, paths in unread.items():
        rest = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        yield [("warning", printable(f"not looked at: {', '.join(paths[:_SHOWN])}{rest}: {why}"))]


def _reason(reason: str, command_line: bool) -> str:
    for need, (argument, option) in _GIVE.items():
        if command_line and reason == need.value:
            return reason.replace(argument, option)
    return reason


def counted(number: int, what: str) -> str:
    """The number and the word, which has an s where they are several."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def printable(words: str) -> str:
    """On one line: names come out of files, and what a terminal obeys must not."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in words)
