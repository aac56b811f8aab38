"""The page of a study, for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from ...report import Block, Code, Formula, Heading, Link, Section, Table, render
from ..claim import TIERS, Conclusion, SubjectClaim
from ..data.source import Source
from ..engine import Outcome
from ..environment import Environment, counted
from .overview import OVERVIEW, TONES, overview

__all__ = ["page"]

_VERDICTS = (
    "Papers, textbooks and practitioners claim much about what batch norm does. Each claim here said before it ran "
    "what would count for it and what against it. Reproduced: the measurements show what it says. Not reproduced: they "
    "show that it, or a part of it, does not hold here. Inconclusive: they do not decide."
)

_CALCULATION = "an identity, a theorem or a formula that is checked on numbers"


def page(outcomes: Sequence[Outcome], environment: Environment, explanation: Section | None = None) -> str:
    """Gives the page: what was found, how to read it, the layer itself, a section a claim, and what it ran on.

    Args:
        outcomes: The claims with what came out, in the order of the page.
        environment: What they ran on.
        explanation: A section that shows what the layer does.

    Raises:
        ModuleNotFoundError: If what the page is made with is not installed.
        ValueError: If a claim's formula is none.
    """
    sections = [overview(outcomes), Section("How to read it", "reading", blocks=tuple(_reading(outcomes, environment)))]
    if explanation is not None:
        sections.append(explanation)
    sections += [_section(outcome) for outcome in outcomes]
    sections.append(
        Section(
            "What it ran on", "environment", blocks=tuple(_repeat(outcomes, environment, whole=explanation is not None))
        )
    )
    return render(
        *_title(outcomes, environment),
        sections,
        footer=f"Made by batchnorm {environment.versions['batchnorm']} on {environment.date}.",
    )


def _title(outcomes: Sequence[Outcome], environment: Environment) -> tuple[str, str]:
    claims, own = _claims(len(outcomes)), f" On your own network, {environment.model}." if environment.model else ""
    if environment.control:
        lead = f"{claims} with the effect taken away, as each section says. Now none should be reproduced.{own}"
        return "The same rules with the effect taken away", lead
    where = " in your network" if own else ""
    each = "" if len(outcomes) == 1 else "each "
    return f"What batch normalization does{where}, measured", f"{claims} about it, {each}put to the test.{own}"


def _claims(count: int) -> str:
    return "One claim" if count == 1 else f"{count} claims"


def _reading(outcomes: Sequence[Outcome], environment: Environment) -> Iterator[Block]:
    yield _VERDICTS
    calculations = sum(outcome.claim.about.calculation for outcome in outcomes)
    if calculations == len(outcomes):
        yield f"{'It is a calculation' if calculations == 1 else 'Each is a calculation'}: {_CALCULATION}."
    elif calculations:
        yield (
            f"Of {_claims(len(outcomes)).lower()} {'one is' if calculations == 1 else f'{calculations} are each'} a "
            f"calculation: {_CALCULATION}. Nothing guarantees how the "
            f"{'other comes' if len(outcomes) - calculations == 1 else 'others come'} out."
        )
    yield (
        f"Everything random is decided by a seed, a number: which images are for training, the first weights, the "
        f"order of the batches. An effect is the mean over {counted(len(environment.seeds), 'seed')}, a geometric mean "
        "where it is a ratio (×). Where two networks are compared, they share all that the seed decides, and the mean "
        "is of their differences."
    )
    count = sum(len(outcome.conclusion.effects) for outcome in outcomes)
    yield (
        "The 95% interval (Student's t) says how far an effect may lie from the mean over very many seeds: of "
        f"the {count} intervals on this page, about one in twenty will miss it by chance. Pilots, where they are "
        "mentioned, ran on other seeds, and so on other splits of the same images."
    )


def _section(outcome: Outcome) -> Section:
    about, conclusion = outcome.claim.about, outcome.conclusion
    seconds = sum(run.seconds for run in outcome.results)
    blocks: list[Block] = [
        about.statement,
        Formula(about.formula),
        *([about.symbols] if about.symbols else []),
        Heading("What was run"),
        about.setup,
        *([("network", outcome.claim.subject.description)] if isinstance(outcome.claim, SubjectClaim) else []),
        ("measured", about.metric),
        ("expected", about.direction),
        Heading("What came out"),
        *conclusion.charts,
        *([_effects(conclusion)] if conclusion.effects else []),
        *conclusion.findings,
        Heading(f"The verdict: {conclusion.verdict.value}"),
        conclusion.reason,
        Heading("How it could have come out otherwise"),
        "The rule is code that sees the results and nothing else; where a pilot or a former study changed the design, "
        f"that is said above. {about.pass_rule}",
        f"The check that the rule can fail is to take the effect away: {_lowered(about.control)}",
        Heading("The paper's number"),
        about.paper or "No number of the paper was checked, so none is shown.",
        ("source", about.source),
        ("cost here", f"{counted(len(outcome.results), 'run')}, {_spent(seconds)} of one processor core"),
        Link("↑ Back to the overview", OVERVIEW),
    ]
    return Section(about.title, about.id, conclusion.verdict.value, TONES[conclusion.verdict], blocks)


def _spent(seconds: float) -> str:
    return "under 1 s" if seconds < 1 else f"{seconds:.0f} s"


def _effects(conclusion: Conclusion) -> Table:
    rows = [(effect.name, str(effect), effect.note) for effect in conclusion.effects]
    if any(note for _, _, note in rows):
        return Table(("effect", "estimate", "note"), rows)
    return Table(("effect", "estimate"), [row[:2] for row in rows])


def _lowered(sentence: str) -> str:
    """A sentence as it stands after a colon: an acronym keeps its capitals."""
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]


def _options(source: Source) -> list[str]:
    usual = Source(source.spec)
    options = [f"--data {shlex.quote(source.spec)}"]
    if source.image_size != usual.image_size:
        options.append(f"--image-size {source.image_size}")
    if source.samples != usual.samples:
        options.append(f"--samples {source.samples}")
    return options


def _repeat(outcomes: Sequence[Outcome], environment: Environment, *, whole: bool) -> Iterator[Block]:
    yield from environment.rows()
    sources = {result.run.data for outcome in outcomes for result in outcome.results if result.run.data is not None}
    command = ["python -m batchnorm study"]
    # The layer is explained where a whole tier runs: with claims named, the command would leave that out.
    if not whole:
        command += [outcome.claim.about.id for outcome in outcomes]
    # A model of the user's is studied as the middle tier does where nothing else is said.
    if whole or environment.tier != TIERS[1 if environment.model else 0]:
        command.append(f"--tier {environment.tier}")
    command.append(f"--seeds {len(environment.seeds)}")
    if len(sources) == 1:
        command += _options(sources.pop())
    if environment.model:
        command.append(f"--model {shlex.quote(environment.model)}")
    if environment.control:
        command.append("--control")
    yield Heading("How to repeat it")
    yield Code(" ".join(command))
    yield (
        "The same versions on the same kind of processor give the same numbers. The numbers behind this page are in "
        "results.json, runs.csv and effects.csv beside it."
    )
    yield Link("↑ Back to the overview", OVERVIEW)
