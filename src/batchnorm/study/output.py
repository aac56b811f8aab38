"""What a study leaves behind: the page for people and the results as JSON beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..report import Section, Table, render
from .claim import Verdict
from .engine import Outcome
from .environment import Environment

__all__ = ["page", "results", "write"]

_TONES = {Verdict.REPRODUCED: "good", Verdict.NOT_REPRODUCED: "bad", Verdict.INCONCLUSIVE: "open"}


def page(outcomes: Sequence[Outcome], environment: Environment) -> str:
    """Gives the page: the verdicts first, then a section a claim, then what it ran on."""
    verdicts = Table(
        ("claim", "verdict", "effect", "of what"),
        [
            (
                outcome.claim.about.title,
                outcome.conclusion.verdict.value,
                str(outcome.conclusion.effects[0]),
                outcome.conclusion.effects[0].name,
            )
            for outcome in outcomes
        ],
        [_TONES[outcome.conclusion.verdict] for outcome in outcomes],
        [outcome.claim.about.id for outcome in outcomes],
    )
    rule = (
        f"Every effect is a mean over {len(environment.seeds)} seeds, paired by seed where two arms are compared, "
        "with its 95% interval (Student's t). A "
        "verdict follows a rule that each claim declares before it runs; reproduced, not reproduced and "
        "inconclusive can all come out."
    )
    sections = [Section("Verdicts", "verdicts", blocks=(verdicts, rule))]
    sections += [_section(outcome) for outcome in outcomes]
    sections.append(Section("What it ran on", "environment", blocks=tuple(environment.rows())))
    return render(
        "What batch normalization does, measured",
        f"{len(outcomes)} claims from the literature, tested on {environment.data}.",
        sections,
        footer=f"Made by batchnorm {environment.versions['batchnorm']} on {environment.date}.",
    )


def _section(outcome: Outcome) -> Section:
    about, conclusion = outcome.claim.about, outcome.conclusion
    effects = Table(
        ("effect", "estimate and 95% interval", "note"),
        [(effect.name, str(effect), effect.note) for effect in conclusion.effects],
    )
    no_number = "No number of the paper was checked, so none is shown."
    return Section(
        about.title,
        about.id,
        conclusion.verdict.value,
        _TONES[conclusion.verdict],
        (
            about.statement,
            conclusion.reason,
            *conclusion.charts,
            effects,
            *conclusion.findings,
            ("formula", about.formula),
            ("what was run", about.setup),
            ("metric", about.metric),
            ("direction", about.direction),
            ("pass rule, and how it could have come out otherwise", about.pass_rule),
            ("the paper's number", about.paper or no_number),
            ("source", about.source),
            ("cost", f"{len(outcome.results)} runs, {sum(run.seconds for run in outcome.results):.0f} s of one core"),
        ),
    )


def results(outcomes: Sequence[Outcome], environment: Environment) -> dict[str, Any]:
    """Everything that was measured, as plain JSON values; what is not finite becomes null."""
    claims = {}
    for outcome in outcomes:
        conclusion = outcome.conclusion
        claims[outcome.claim.about.id] = {
            "title": outcome.claim.about.title,
            "pass_rule": outcome.claim.about.pass_rule,
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
                    "note": effect.note,
                }
                for effect in conclusion.effects
            ],
            "runs": [
                {
                    "arm": result.run.arm,
                    "seed": result.run.seed,
                    "data": result.run.data,
                    "seconds": round(result.seconds, 3),
                    "values": dict(result.values),
                }
                for result in outcome.results
            ],
        }
    plain = _plain({"environment": environment.as_json(), "claims": claims})
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(outcomes: Sequence[Outcome], environment: Environment, folder: Path) -> Path:
    """Writes ``index.html`` and ``results.json`` into a folder, which is made, and gives the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results(outcomes, environment), indent=1, allow_nan=False, ensure_ascii=False)
    target = folder / "index.html"
    for path, content in ((folder / "results.json", text), (target, page(outcomes, environment))):
        # Written aside and moved: an interrupted write leaves the former file whole.
        aside = path.with_suffix(path.suffix + ".part")
        aside.write_text(content, "utf-8")
        aside.replace(path)
    return target
