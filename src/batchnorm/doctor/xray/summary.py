"""The summary: what was looked at, and how, and what was not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from ...report import Block, Fold, Section, Table, spoken
from ..diagnosis import Diagnosis
from ..evidence import Failure, Run
from ..finding import SEVERITIES
from ..rule import Need
from .words import TONES, counted, model_name, short

__all__ = ["summary", "verdict"]

_PLURAL = {"error": "errors", "warning": "warnings", "info": "notes"}
_SINGULAR = {"error": "error", "warning": "warning", "info": "note"}


def verdict(diagnosis: Diagnosis) -> tuple[str, str]:
    """The worst of what was found in two words, and its tone."""
    counts = Counter(finding.severity for finding in diagnosis.findings)
    for severity in reversed(SEVERITIES):
        if counts[severity]:
            return counted(counts[severity], _SINGULAR[severity]), TONES[severity]
    if not diagnosis.evidence.layers:
        return "no norms", "open"
    ran, skipped = len(diagnosis.rules), len(diagnosis.skipped)
    # Where most could not look, that nothing was found says little.
    return (f"nothing found by {ran} of {ran + skipped} rules", "open") if skipped >= ran else ("nothing found", "good")


def summary(diagnosis: Diagnosis) -> Section:
    """The section."""
    text, tone = verdict(diagnosis)
    return Section("Summary", "summary", text, tone, tuple(_blocks(diagnosis)))


def _blocks(diagnosis: Diagnosis) -> Iterator[Block]:
    evidence = diagnosis.evidence
    yield "Model", model_name(diagnosis)
    kinds = Counter(layer.kind for layer in evidence.layers if layer.kind)
    named = ", ".join(f"{number:,} × {kind}" for kind, number in kinds.most_common())
    channels = sum(layer.channels for layer in evidence.layers)
    words = f"{len(evidence.layers):,}{f' ({named})' if named else ''}, with {counted(channels, 'channel')} together"
    yield "Norms", words if evidence.layers else "none"
    counts = Counter(finding.severity for finding in diagnosis.findings)
    yield (
        "Findings",
        ", ".join(
            f"{counts[each]:,} {(_SINGULAR if counts[each] == 1 else _PLURAL)[each]}" for each in SEVERITIES[::-1]
        )
        + (f"; {diagnosis.ignored:,} more are ignored at their layers" if diagnosis.ignored else ""),
    )
    mends = {finding.fix.description for finding in diagnosis.findings if finding.fix is not None}
    if mends:
        mended = sum(finding.fix is not None for finding in diagnosis.findings)
        yield "Mended by fix()", f"{mended:,} of the findings: {'; '.join(sorted(mends))}"
    if evidence.training is None:
        yield "Batches", "none were given (batches=): no distributions, no gradients, nothing about the data"
    for run in (evidence.training, evidence.evaluation):
        if run is not None:
            yield ("Run in training mode" if run.mode == "training" else "… in evaluation mode"), _run(run)
    if evidence.training is not None:
        reached = sum(layer.gradient is not None for layer in evidence.layers)
        yield "Backward pass", _backward(diagnosis, evidence.training, reached)
        missed = sum(layer.in_training is None and layer.in_evaluation is None for layer in evidence.layers)
        if missed:
            yield "Not reached", f"{counted(missed, 'norm')} by no batch"
    if evidence.ranks is not None:
        yield "Process", f"{evidence.ranks.rank} of {evidence.ranks.size}; distributions are those of this one"
    yield "Rules run", f"{len(diagnosis.rules)}: {', '.join(rule.code for rule in diagnosis.rules)}"
    if diagnosis.skipped:
        yield "Not checked", counted(len(diagnosis.skipped), "rule")
        rows = sorted((why, code) for code, why in diagnosis.skipped.items())
        table = Table(("rule", "why not"), [(code, why) for why, code in rows], title="Rules that were not run")
        yield Fold("Which rules were not run, and why", (table,))
    if evidence.unread:
        yield "Not looked at", counted(len(evidence.unread), "module")
        places = [(path or "(the model itself)", why) for path, why in evidence.unread.items()]
        table = Table(("module", "why not"), places, title="Modules that were not looked at")
        yield Fold("Which modules were not looked at, and why", (table,))


def _backward(diagnosis: Diagnosis, run: Run, reached: int) -> str:
    if reached:
        return (
            f"one, through the first batch: it reached {reached:,} of {counted(len(diagnosis.evidence.layers), 'norm')}"
        )
    if run.without_backward:
        return f"none: {run.without_backward}"
    if any(Need.BACKWARD in (*rule.needs, *rule.uses) for rule in diagnosis.rules):
        return "one, which reached no norm"
    return "none: no rule that was run needs it"


def _run(run: Run) -> str:
    known = [size for size in run.samples if size is not None]
    sizes = sorted(set(known))
    words = counted(len(run.samples), "batch", "batches")
    if sizes:
        words += f" of {counted(sizes[-1], 'sample')}" if len(sizes) == 1 else f" of {sizes[0]} to {sizes[-1]} samples"
    shape = next((each for each in run.inputs if each), None)
    if shape is not None:
        words += f", the first of shape {' × '.join(map(str, shape))}"
    if run.losses:
        mean = sum(run.losses) / len(run.losses)
        words += "; the loss is NaN" if math.isnan(mean) else f"; mean loss {spoken(mean)}"
    return words if run.failure is None else f"{words}; {_failure(run.failure)}"


def _failure(failure: Failure) -> str:
    where = "" if failure.layer is None else f" at {short(failure.layer)} with input of shape {failure.shape}"
    return f"batch {failure.batch} raised{where}: {type(failure.error).__name__}: {failure.error}"
