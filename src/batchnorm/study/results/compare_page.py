"""The page that compares two studies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ...report import Block, Counts, Formula, Heading, Section, Table, render, spoken
from .compare import Change, Comparison, Pair
from .kept import KeptStudy
from .overview import TONES

__all__ = ["apart", "compare_page", "overlap", "verdicts"]

_NAMES = ("A", "B")
_NOT_STATED = (
    "Not both state the number of images that a seed uses, their size and a fingerprint of them: whether the images "
    "are the same is not known."
)


def compare_page(comparison: Comparison) -> str:
    """Gives the page: verdicts, effects side by side, and what was not the same.

    Raises:
        ModuleNotFoundError: If what the page is made with is not installed.
    """
    sections = [
        Section("The verdicts", "verdicts", blocks=tuple(_verdicts(comparison))),
        *(Section(each.first.title, each.first.id, *_badge(each), _effects(each)) for each in comparison.changes),
        *_only(comparison),
        Section("What was not the same", "circumstances", blocks=tuple(_circumstances(comparison))),
    ]
    lead = " ".join(f"{name} is {_told(study)}." for name, study in zip(_NAMES, _both(comparison), strict=True))
    return render("Two studies of batch normalization, compared", lead, sections)


def _both(comparison: Comparison) -> tuple[KeptStudy, KeptStudy]:
    return comparison.first, comparison.second


def _told(study: KeptStudy) -> str:
    date = study.environment.get("date")
    effect = ", with the effect taken away from every claim" if study.environment.get("control") else ""
    return f"{study.path}{f' of {date}' if date else ''}{effect}"


def verdicts(change: Change) -> str:
    """The verdict, or the two where it changed."""
    one, two = change.first.verdict.value, change.second.verdict.value
    return f"{one} → {two}" if change.changed else one


def _badge(change: Change) -> tuple[str, str]:
    return verdicts(change), TONES[change.second.verdict]


def _verdicts(comparison: Comparison) -> Iterator[Block]:
    changes = comparison.changes
    if not changes:
        yield "The two studies have no claim in common."
        return
    changed = sum(change.changed for change in changes)
    words = f"verdict{'s' * (changed != 1)} changed"
    yield Counts([(changed, words, "open" if changed else ""), (len(changes) - changed, "stayed", "")])
    yield Table(
        ("claim", "verdict", "A", "B"),
        [(each.first.title, verdicts(each), each.first.short[0], each.second.short[0]) for each in changes],
        [TONES[each.second.verdict] for each in changes],
        [each.first.id for each in changes],
        "The verdicts",
    )
    yield Heading("How to read the differences")
    yield (
        "Each effect's standard error follows from its 95% interval: half its width, divided by Student's t for its "
        "seeds. The difference of two effects has the standard error of two independent means; of ratios (×) the "
        "logarithms are compared, and their difference is told as a ratio."
    )
    yield Formula(r"d = b - a \qquad s_d = \sqrt{s_a^2 + s_b^2}")
    yield (
        "Studies of the same seeds on the same data are not independent: they share splits, first weights and order "
        "of batches. What they share cancels in the difference, which is then known better than its standard error "
        "says. Two intervals may overlap although the difference is beyond two standard errors."
    )


def _effects(change: Change) -> Sequence[Block]:
    blocks: list[Block] = []
    if change.pairs:
        rows = [
            (
                pair.first.name,
                str(pair.first),
                str(pair.second),
                apart(pair),
                overlap(pair),
            )
            for pair in change.pairs
        ]
        blocks.append(Table(("effect", "A", "B", "B against A", "intervals"), rows))
    blocks += [(f"only in {name}", "; ".join(names)) for name, names in zip(_NAMES, change.only, strict=True) if names]
    for name, claim in zip(_NAMES, (change.first, change.second), strict=True):
        blocks.append((f"{name}: why {claim.verdict.value}", claim.reason))
    return blocks


def overlap(pair: Pair) -> str:
    """Whether the two intervals overlap, in words; a dash where one of the effects is none."""
    if math.isnan(pair.first.interval.estimate) or math.isnan(pair.second.interval.estimate):
        return "–"
    return "overlap" if pair.overlap else "do not overlap"


def apart(pair: Pair) -> str:
    """The difference of two effects with its standard error, in words."""
    found = pair.apart
    if found is None:
        return "not told by these intervals"
    difference, error = found
    if pair.ratio:
        return f"{spoken(math.exp(difference))}× (standard error of its logarithm {spoken(error, 2)})"
    unit = pair.first.unit if pair.first.unit in ("", "%") else f" {pair.first.unit}"
    return f"{spoken(difference)}{unit} (standard error {spoken(error, 2)})"


def _only(comparison: Comparison) -> Iterator[Section]:
    for name, claims in zip(_NAMES, comparison.only, strict=True):
        if claims:
            table = Table(
                ("claim", "verdict", "effect", "of what"),
                [(claim.title, claim.verdict.value, *claim.short) for claim in claims],
                [TONES[claim.verdict] for claim in claims],
            )
            yield Section(f"Only in {name}", f"only-{name.lower()}", blocks=(table,))


def _circumstances(comparison: Comparison) -> Iterator[Block]:
    if not comparison.circumstances:
        same: list[str] = [name for name in ("versions", "processor", "seeds") if name in comparison.stated]
        same += ["images"] * ("fingerprint" in comparison.stated) + ["settings"] * bool(comparison.changes)
        yield f"Nothing that both state{': the same ' if same else ''}{_listed(same)}."
        if "fingerprint" not in comparison.stated:
            yield _NOT_STATED
        return
    yield Table(("what", "A", "B"), comparison.circumstances)
    yield "What only one of the two states is left out."
    if "fingerprint" not in comparison.stated:
        yield _NOT_STATED


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
