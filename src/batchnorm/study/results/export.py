"""What a study leaves in its folder: the page for people, the results as JSON and as tidy tables for machines."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ...files import write_whole
from ...report import Section
from ..claim import Result, SubjectClaim
from ..engine import Outcome
from ..environment import Environment
from .output import page

__all__ = ["FORMAT", "effects_table", "results", "runs_table", "write"]

#: The version of ``results.json``, by its ``format``; files without one are of version 1.
FORMAT = 2


def results(outcomes: Sequence[Outcome], environment: Environment, others: Sequence[Result] = ()) -> dict[str, Any]:
    """Everything that was measured, as plain JSON values; what is not finite becomes null.

    Args:
        outcomes: The claims.
        environment: What they ran on.
        others: Runs that belong to no claim: those behind the explanation of the layer.
    """
    claims = {}
    for outcome in outcomes:
        about, conclusion = outcome.claim.about, outcome.conclusion
        claims[about.id] = {
            "title": about.title,
            "topic": about.topic.value,
            "source": about.source,
            "metric": about.metric,
            "pass_rule": about.pass_rule,
            "settings": repr(outcome.claim),
            "network": outcome.claim.subject.description if isinstance(outcome.claim, SubjectClaim) else None,
            "verdict": conclusion.verdict.value,
            "reason": conclusion.reason,
            "effects": [
                {
                    "name": effect.name,
                    "estimate": effect.interval.estimate,
                    "low": effect.interval.low,
                    "high": effect.interval.high,
                    "seeds": effect.interval.count,
                    "unit": effect.unit,
                    "ratio": effect.ratio,
                    "note": effect.note,
                }
                for effect in conclusion.effects
            ],
            # What stands in a row of its own: an effect, and of what.
            "in short": list(outcome.effect),
            "findings": list(conclusion.findings),
            "runs": [_run(result) for result in outcome.results],
        }
    rest = [{"of": result.run.claim, **_run(result)} for result in others]
    plain = _plain({"format": FORMAT, "environment": environment.as_json(), "claims": claims, "other runs": rest})
    assert isinstance(plain, dict)
    return plain


def _run(result: Result) -> dict[str, Any]:
    return {
        "arm": result.run.arm,
        "seed": result.run.seed,
        "data": None if result.run.data is None else str(result.run.data),
        "seconds": round(result.seconds, 3),
        "values": dict(result.values),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def runs_table(outcomes: Sequence[Outcome], others: Sequence[Result] = ()) -> str:
    """Every value of every run as tidy CSV: one value a row, numbered from 0 within a list.

    Equal runs give equal rows: how long they took is in the JSON only.
    """
    header = ("claim", "arm", "seed", "data", "metric", "index", "value")

    def rows() -> Iterator[tuple[object, ...]]:
        for result in chain(*(outcome.results for outcome in outcomes), others):
            run = result.run
            for metric, value in result.values.items():
                for index, item in enumerate(value if isinstance(value, list) else [value]):
                    yield run.claim, run.arm, run.seed, run.data or "", metric, index, _cell(item)

    return _csv(header, rows())


def effects_table(outcomes: Sequence[Outcome]) -> str:
    """Every effect as CSV: one effect a row, with its claim's verdict; the first of a claim decided."""
    header = ("claim", "verdict", "effect", "estimate", "low", "high", "unit", "seeds", "decisive", "note")

    def rows() -> Iterator[tuple[object, ...]]:
        for outcome in outcomes:
            for place, effect in enumerate(outcome.conclusion.effects):
                span = effect.interval
                numbers = (_cell(span.estimate), _cell(span.low), _cell(span.high))
                names = (outcome.claim.about.id, outcome.conclusion.verdict.value, effect.name)
                yield *names, *numbers, effect.unit, span.count, place == 0, effect.note

    return _csv(header, rows())


def _cell(value: object) -> object:
    # repr keeps a float to its last bit; "nan" and "inf" are what readers of CSV know.
    return repr(float(value)) if isinstance(value, float) else value


def _csv(header: Sequence[str], rows: Iterator[tuple[object, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def write(
    outcomes: Sequence[Outcome],
    environment: Environment,
    folder: Path,
    *,
    explanation: Section | None = None,
    others: Sequence[Result] = (),
) -> Path:
    """Writes ``index.html``, ``results.json``, ``runs.csv`` and ``effects.csv``; gives the page's path.

    Args:
        outcomes: The claims.
        environment: What they ran on.
        folder: Where to; it is made.
        explanation: The section that shows what the layer does.
        others: Runs that belong to no claim, such as those behind that section.
    """
    # All are made before one is written, so that the four are of one study.
    texts = {
        "results.json": json.dumps(
            results(outcomes, environment, others), indent=1, allow_nan=False, ensure_ascii=False
        ),
        "runs.csv": runs_table(outcomes, others),
        "effects.csv": effects_table(outcomes),
        "index.html": page(outcomes, environment, explanation),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    return folder / "index.html"
