"""The page of a study, for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from ..report import Block, Code, Formula, Heading, Link, Section, Table, render
from .claim import TIERS, Conclusion, Verdict
from .data.source import Source
from .engine import Outcome
from .environment import Environment

__all__ = ["page"]

_TONES = {Verdict.REPRODUCED: "good", Verdict.NOT_REPRODUCED: "bad", Verdict.INCONCLUSIVE: "open"}

_WHAT = (
    "Batch normalization is a layer of a neural network. It takes each feature's values over the examples of a "
    "batch, subtracts their mean and divides by their standard deviation. Then it scales and shifts them by two "
    "numbers that the network learns."
)
_VERDICTS = (
    "Papers, textbooks and practitioners claim much about what that does. Each claim here said before it ran what "
    "would count for it and what against it. Reproduced: the measurements show what it says. Not reproduced: they "
    "show that it, or a part of it, does not hold here. Inconclusive: they do not decide."
)


def page(outcomes: Sequence[Outcome], environment: Environment, explanation: Section | None = None) -> str:
    """Gives the page: a summary, the layer itself, a section a claim, and what it ran on.

    Args:
        outcomes: The claims with what came out, in the order of the page.
        environment: What they ran on.
        explanation: A section that shows what the layer does.

    Raises:
        ModuleNotFoundError: If what the page is made with is not installed.
        ValueError: If a claim's formula is none.
    """
    sections = [Section("In a minute", "summary", blocks=tuple(_summary(outcomes, environment)))]
    if explanation is not None:
        sections.append(explanation)
    sections += [_section(outcome) for outcome in outcomes]
    sections.append(
        Section(
            "What it ran on", "environment", blocks=tuple(_repeat(outcomes, environment, whole=explanation is not None))
        )
    )
    claims = _claims(len(outcomes))
    title, lead = "What batch normalization does, measured", f"{claims} about it, each put to the test."
    if environment.control:
        title = "The same rules with the effect taken away"
        lead = f"{claims} with the effect taken away, as each section says. Now none should be reproduced."
    return render(
        title,
        lead,
        sections,
        footer=f"Made by batchnorm {environment.versions['batchnorm']} on {environment.date}.",
    )


def _claims(count: int) -> str:
    return "One claim" if count == 1 else f"{count} claims"


def _summary(outcomes: Sequence[Outcome], environment: Environment) -> Iterator[Block]:
    yield _WHAT
    yield _VERDICTS
    yield _counts(outcomes)
    yield Heading("The verdicts", "verdicts")
    yield Table(
        ("claim", "verdict", "effect", "of what"),
        [
            (
                outcome.claim.about.title,
                outcome.conclusion.verdict.value,
                *outcome.effect,
            )
            for outcome in outcomes
        ],
        [_TONES[outcome.conclusion.verdict] for outcome in outcomes],
        [outcome.claim.about.id for outcome in outcomes],
    )
    seeds = len(environment.seeds)
    yield (
        f"Everything random is decided by a seed, a number: which images are for training, the first weights, the "
        f"order of the batches. An effect is the mean over {seeds} seed{'s' * (seeds != 1)}, a geometric mean where "
        "it is a ratio (×). Where two networks are compared, they share all that the seed decides, and the mean is "
        "of their differences."
    )
    count = sum(len(outcome.conclusion.effects) for outcome in outcomes)
    yield (
        "The 95% interval (Student's t) says how far an effect may lie from the mean over very many seeds: of "
        f"the {count} intervals on this page, about one in twenty will miss it by chance. Pilots, where they are "
        "mentioned, ran on other seeds, and so on other splits of the same images."
    )
    pictures = (outcome.conclusion.headline for outcome in outcomes)
    headline = next((picture for picture in pictures if picture is not None), None)
    if headline is not None:
        yield Heading("With and without, in one picture")
        yield headline


def _counts(outcomes: Sequence[Outcome]) -> str:
    verdicts = [outcome.conclusion.verdict for outcome in outcomes]
    found = [f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict if verdict in verdicts]
    calculations = sum(outcome.claim.about.calculation for outcome in outcomes)
    kinds = (
        f" {_number(calculations)} a calculation: an identity, a theorem or a formula that is checked on numbers. "
        "Nothing guarantees how the others come out."
        if calculations
        else ""
    )
    listed = found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else "none ran"
    return f"Of {_claims(len(outcomes)).lower()}: {listed}.{kinds}"


def _number(count: int) -> str:
    return "One is" if count == 1 else f"{count} are each"


def _section(outcome: Outcome) -> Section:
    about, conclusion = outcome.claim.about, outcome.conclusion
    seconds = sum(run.seconds for run in outcome.results)
    blocks: list[Block] = [
        about.statement,
        Formula(about.formula),
        *([about.symbols] if about.symbols else []),
        Heading("What was run"),
        about.setup,
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
        ("cost here", f"{len(outcome.results)} runs, {_spent(seconds)} of one processor core"),
        Link("↑ Back to the verdicts", "verdicts"),
    ]
    return Section(about.title, about.id, conclusion.verdict.value, _TONES[conclusion.verdict], blocks)


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
    tiers = [outcome.claim.about.tier for outcome in outcomes]
    command += [f"--tier {max(tiers, key=TIERS.index)}"] if whole else [outcome.claim.about.id for outcome in outcomes]
    command.append(f"--seeds {len(environment.seeds)}")
    if len(sources) == 1:
        command += _options(sources.pop())
    if environment.control:
        command.append("--control")
    yield Heading("How to repeat it")
    yield Code(" ".join(command))
    yield (
        "The same versions on the same kind of processor give the same numbers. The numbers behind this page are in "
        "results.json, runs.csv and effects.csv beside it."
    )
    yield Link("↑ Back to the verdicts", "verdicts")
