"""What a study found, at a glance: a line a claim, in large type, for a reader who sits far away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...report import Block, Counts, Heading, Line, Lines, Section
from ..claim import Topic, Verdict
from ..engine import Outcome

__all__ = ["OVERVIEW", "TONES", "overview"]

#: The anchor of the overview.
OVERVIEW = "overview"

#: The colours of verdicts.
TONES = {Verdict.REPRODUCED: "good", Verdict.NOT_REPRODUCED: "bad", Verdict.INCONCLUSIVE: "open"}

_WHAT = (
    "Batch normalization is a layer of a neural network: it subtracts each feature's mean over a batch and divides by "
    "its standard deviation, then scales and shifts by two numbers that the network learns."
)


def overview(outcomes: Sequence[Outcome]) -> Section:
    """Gives the section: how many verdicts of each kind, and each claim under what it is about."""
    return Section("At a glance", OVERVIEW, blocks=tuple(_blocks(outcomes)))


def _blocks(outcomes: Sequence[Outcome]) -> Iterator[Block]:
    yield _WHAT
    verdicts = [outcome.conclusion.verdict for outcome in outcomes]
    yield Counts([(verdicts.count(each), each.value, TONES[each]) for each in Verdict if each in verdicts])
    for topic in Topic:
        own = [_line(outcome) for outcome in outcomes if outcome.claim.about.topic is topic]
        if own:
            yield Lines(topic.value[:1].upper() + topic.value[1:], own, topic.name.lower())
    pictures = (outcome.conclusion.headline for outcome in outcomes)
    headline = next((picture for picture in pictures if picture is not None), None)
    if headline is not None:
        yield Heading("With and without, in one picture")
        yield headline


def _line(outcome: Outcome) -> Line:
    about, conclusion = outcome.claim.about, outcome.conclusion
    effect, what = outcome.effect
    number, apart, span = effect.partition(" (")
    words, fact, rest = what, number, f"{apart.strip()}{span}"
    if conclusion.short is not None:
        # No number of that name: what it is comes first.
        words, fact, rest = "", f"{effect}:", what
    picture = next(iter(conclusion.charts), None)
    return Line(about.title, about.id, conclusion.verdict.value, TONES[conclusion.verdict], words, fact, rest, picture)
