"""The findings, rule by rule: what is wrong where, the measurements with their thresholds, and the mend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...report import Block, Code, Fold, Heading, Section, Table
from ..diagnosis import Diagnosis
from ..finding import SEVERITIES, Finding
from ..registry import registered
from .words import anchors, badge, counted, finding_anchor, short

__all__ = ["findings"]

# So many findings of a rule are shown at once; the others unfold.
_SHOWN = 8


def findings(diagnosis: Diagnosis) -> Section:
    """The section."""
    return Section("Findings", "findings", blocks=tuple(_blocks(diagnosis)))


def _blocks(diagnosis: Diagnosis) -> Iterator[Block]:
    if not diagnosis.findings:
        yield (
            f"Nothing was found by the {counted(len(diagnosis.rules), 'rule')} that ran."
            if diagnosis.rules
            else "No rule ran."
        )
        return
    places = anchors(diagnosis)
    by_rule: dict[str, list[Finding]] = {}
    for finding in diagnosis.findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    for code, own in by_rule.items():
        worst = max(own, key=lambda each: SEVERITIES.index(each.severity))
        marks = [badge(worst, worst.severity)]
        if any(finding.fix is not None for finding in own):
            marks.append(("fix() mends it", "good"))
        yield Heading(f"{code} {worst.name}", finding_anchor(worst), tuple(marks))
        rule = registered().get(code)
        if rule is not None:
            yield rule.summary
        yield _table(own[:_SHOWN], places, code)
        if own[_SHOWN:]:
            yield Fold(f"The other {len(own) - _SHOWN:,}", (_table(own[_SHOWN:], places, code),))
        mends = list(dict.fromkeys(finding.mend for finding in own if finding.mend))
        if mends:
            yield Code("\n".join(mends[:_SHOWN]))
        if mends[_SHOWN:]:
            yield Fold(f"{len(mends) - _SHOWN:,} more lines", (Code("\n".join(mends[_SHOWN:])),))


def _table(own: Sequence[Finding], places: dict[str, str], code: str) -> Table:
    rows = [
        (
            short(finding.layer),
            finding.message,
            "; ".join(f"{name}: {measured}" for name, measured in finding.evidence.items()),
        )
        for finding in own
    ]
    links = [places.get(finding.layer, "") for finding in own]
    return Table(("layer", "what is wrong", "measured"), rows, links=links, title=f"Findings of {code}")
