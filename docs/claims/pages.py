"""Write a page for each claim of the study, and their table, README.md, from the claims' files and the last full run.

Run `python docs/claims/pages.py` after a change of a claim's text; a test compares the committed pages with this
script. `python docs/claims/pages.py --study FOLDER` takes a finished study into results.json and draws its pictures.
The verdicts in ../what-batch-norm-does.md, between `<!-- verdict: ID -->` and `<!-- /verdict -->`, are written too.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchnorm.report import Pictures, save_picture
from batchnorm.study import Claim, StudyError, SubjectClaim, Topic, registered
from batchnorm.study.claim import TIERS
from batchnorm.study.data import default, load
from batchnorm.study.engine import MINIMUM_SEEDS
from batchnorm.study.environment import counted
from batchnorm.study.results import kept

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
STORY = HERE.parent / "what-batch-norm-does.md"

# Pictures a claim: the page of a study has all.
MOST = 2

# What a study notes of one start of it: kept runs took their time before.
OF_ONE_START = ("seconds", "kept", "workers")

# What makes a full run.
REPEAT = f"run `batchnorm study --tier {TIERS[-1]} --seeds {MINIMUM_SEEDS}` and name its folder"

MARKED = re.compile(r"(<!-- verdict: (\S+) -->\n).*?(<!-- /verdict -->)", re.DOTALL)


def text(words: str) -> str:
    """Plain text as it stands in Markdown, also in a cell of a table."""
    escaped = re.sub(r"[\\`*|$\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", words)
    return escaped.replace("<", "&lt;")


def unfit(study: kept.KeptStudy) -> list[str]:
    """Why a study is not what the pages say of it: all claims, in full, on the images that come with it."""
    stated, usual = study.environment, default()
    missing = [name for name in registered() if name not in study.claims]
    seeds = stated.get("seeds", [])
    runs = [run for claim in study.plain["claims"].values() for run in claim.get("runs") or []]
    others = sorted({str(run["data"]) for run in runs} - {"None", str(usual)})
    images = load(usual)
    own = {"samples": min(usual.samples, len(images.y)), "fingerprint": images.fingerprint}
    return [
        *([f"its tier is {stated.get('tier', 'not stated')}"] if stated.get("tier") != TIERS[-1] else []),
        *([f"it has {len(seeds)} of at least {MINIMUM_SEEDS} seeds"] if len(seeds) < MINIMUM_SEEDS else []),
        *([f"its seeds are {seeds}, not the first ones"] if seeds != list(range(len(seeds))) else []),
        *([f"it lacks {', '.join(missing)}"] if missing else []),
        *(["the effect is taken away"] if stated.get("control") else []),
        *([f"it is of the network {stated['model']}"] if stated.get("model") else []),
        *([f"it ran on {', '.join(others)}"] if others else []),
        *([f"its images are {stated.get('data')}"] if stated.get("data") != images.description else []),
        # A study of before did not state them.
        *[
            f"its {name} is {stated[name]}, not {value}"
            for name, value in own.items()
            if stated.get(name, value) != value
        ],
    ]


def take(folder: Path) -> None:
    """Takes a finished study: its results without the values of its runs, and the pictures.

    Raises:
        StudyError: If it is not a full run.
    """
    study = kept.read(folder)
    reasons = unfit(study)
    if reasons:
        raise StudyError(f"{study.path} is no full run: {'; '.join(reasons)}.", REPEAT)
    outcomes = kept.outcomes(study)
    plain = json.loads(study.path.read_text("utf-8"))
    environment = {name: value for name, value in plain["environment"].items() if name not in OF_ONE_START}
    for old in HERE.glob("*.svg"):
        old.unlink()
    claims: dict[str, Any] = {}
    for outcome in outcomes:
        about = outcome.claim.about
        claim = {name: value for name, value in plain["claims"][about.id].items() if name != "runs"}
        claim["runs made"] = len(outcome.results)
        claim["core-seconds"] = round(sum(run.seconds for run in outcome.results))
        # Images are many bytes for what a chart says in few.
        shown = [chart for chart in outcome.conclusion.charts if not isinstance(chart, Pictures)][:MOST]
        claim["pictures"] = [chart.title for chart in shown or outcome.conclusion.charts[:1]]
        for number, chart in enumerate(shown or outcome.conclusion.charts[:1], 1):
            save_picture(chart, HERE / f"{about.id}-{number}.svg")
        claims[about.id] = claim
    taken = {"format": plain["format"], "environment": environment, "claims": claims}
    RESULTS.write_text(json.dumps(taken, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def effects(claim: kept.KeptClaim) -> Iterator[str]:
    """The table of its effects; the first decided."""
    notes = any(effect.note for effect in claim.effects)
    yield f"| effect | estimate over {counted(claim.effects[0].interval.count, 'seed')} |{' note |' * notes}"
    yield f"|---|---|{'---|' * notes}"
    for effect in claim.effects:
        note = f" {text(effect.note)} |" if notes else ""
        yield f"| {text(effect.name)} | {text(str(effect))} |{note}"


def found(claim: Claim, result: kept.KeptClaim | None, study: kept.KeptStudy | None) -> Iterator[str]:
    """What the last full run says."""
    yield "## What came out"
    if result is None or study is None:
        yield "It has not been run in full."
        return
    tier = str(study.environment.get("tier", "quick"))
    if result.settings != repr(claim.at(tier)):
        yield "*These results are of other settings than the claim has by now.*"
    yield f"**{result.verdict.value[:1].upper()}{result.verdict.value[1:]}.** {text(result.reason)}"
    own = study.plain["claims"][result.id]
    for number, title in enumerate(own["pictures"], 1):
        yield f"![{text(title)}]({result.id}-{number}.svg)"
    if result.effects:
        yield "\n".join(effects(result))
    yield from map(text, result.findings)
    yield (
        f"Run on {study.environment['date'].split()[0]}, {counted(own['runs made'], 'run')}, {own['core-seconds']:,} "
        "seconds of one processor core. [What it ran on](README.md#what-it-ran-on)."
    )


def page(claim: Claim, study: kept.KeptStudy | None) -> str:
    """A claim as its file declares it, with the last full run's verdict."""
    about = claim.about
    result = None if study is None else study.claims.get(about.id)
    verdict = "not run in full yet" if result is None else result.verdict.value
    kind = " A calculation: an identity, a theorem or a formula, checked on numbers." if about.calculation else ""
    # It is run as it is largest: the cheapest tier that does so.
    largest = next(tier for tier in TIERS if claim.at(tier) == claim.at(TIERS[-1]))
    size = "" if largest == TIERS[0] else f" --tier {largest}"
    source = f"../../src/batchnorm/study/claims/{type(claim).__module__.rpartition('.')[2]}.py"
    parts = [
        f"# {text(about.title)}",
        f"A claim of [the study](../study.md), `{about.id}`: **{verdict}**. [All claims](README.md).{kind}",
        text(about.statement),
        f"$$\n{about.formula}\n$$",
        *([text(about.symbols)] if about.symbols else []),
        *found(claim, result, study),
        "## What is run",
        text(about.setup),
        *([f"Network: {text(claim.subject.description)}."] if isinstance(claim, SubjectClaim) else []),
        f"Measured: {text(about.metric)}",
        f"Expected: {text(about.direction)}",
        "## When it is reproduced",
        text(about.pass_rule),
        f"The check that this can fail: {text(about.control)}",
        "## Source",
        text(about.source),
        text(about.paper or "No number of the paper was checked, so none is shown."),
        "## Run it",
        f"```sh\nbatchnorm study {about.id}{size}\nbatchnorm study {about.id}{size} --control\n```",
        f"About {about.budget:.0f} seconds of one processor core for five seeds; part of the tier `{about.tier}`.",
        f"*Made from [the claim's file]({source}) and [results.json](results.json) by `python docs/claims/pages.py`.*",
    ]
    return "\n\n".join(parts) + "\n"


def table(study: kept.KeptStudy | None) -> str:
    """The claims in a row each, under what they are about, and what they ran on."""
    parts = [
        "# The claims",
        "What [the study](../study.md) tests, and what its last full run found. "
        "[What batch norm does](../what-batch-norm-does.md) tells it as a story.",
    ]
    for topic in Topic:
        own = [claim for claim in registered().values() if claim.about.topic is topic]
        rows = [row(claim, None if study is None else study.claims.get(claim.id)) for claim in own]
        if rows:
            head = "| claim | verdict | effect | of what |\n|---|---|---|---|"
            parts += [f"## {topic.value[:1].upper()}{topic.value[1:]}", "\n".join([head, *rows])]
    parts.append("## What it ran on")
    if study is None:
        parts.append("Nothing has been run in full.")
    else:
        parts += ran_on(study)
    return "\n\n".join(parts) + "\n"


def row(claim: Claim, result: kept.KeptClaim | None) -> str:
    """A claim with its verdict and the effect that decided."""
    said = ("not run in full", "", "") if result is None else (result.verdict.value, *result.short)
    return f"| [{text(claim.about.title)}]({claim.id}.md) | {' | '.join(map(text, said))} |"


def ran_on(study: kept.KeptStudy) -> Iterator[str]:
    """Its environment, and how to repeat it."""
    environment = study.environment
    own = [study.plain["claims"][name] for name in study.claims]
    runs, seconds = (sum(claim[name] for claim in own) for name in ("runs made", "core-seconds"))
    rows = {
        "date": environment["date"],
        "processor": environment["processor"],
        "data": environment["data"],
        "seeds": ", ".join(map(str, environment["seeds"])),
        "versions": ", ".join(f"{name} {number}" for name, number in environment["versions"].items()),
        "work": f"{runs:,} runs, {seconds:,} seconds of one processor core",
    }
    yield "\n".join(["| | |", "|---|---|", *(f"| {name} | {text(str(value))} |" for name, value in rows.items())])
    yield f"```sh\nbatchnorm study --tier {environment.get('tier', 'quick')} --seeds {len(environment['seeds'])}\n```"
    yield (
        "*Made from the claims' files and [results.json](results.json), which has the numbers, by "
        "`python docs/claims/pages.py`.*"
    )


def story(old: str, study: kept.KeptStudy | None) -> str:
    """A text with the verdicts between its marks written anew.

    Raises:
        ValueError: If a mark names no claim.
    """

    def box(mark: re.Match[str]) -> str:
        if mark[2] not in registered():
            raise ValueError(f"a mark names {mark[2]}, which is no claim")
        claim = registered()[mark[2]]
        result = None if study is None else study.claims.get(claim.id)
        words = "not run in full yet."
        if result is not None:
            effect, what = map(text, result.short)
            words = f"{result.verdict.value}. {what}: {effect}."
            if result.short[0] != (str(result.effects[0]) if result.effects else ""):
                # Said in words, not as a number of that name: what it is comes first.
                words = f"{result.verdict.value}. {effect[:1].upper()}{effect[1:]}: {what}."
        return f"{mark[1]}> **[{text(claim.about.title)}](claims/{claim.id}.md)**: {words}\n{mark[3]}"

    return MARKED.sub(box, old)


def last() -> kept.KeptStudy | None:
    """The last full run, where there was one."""
    return kept.read(RESULTS) if RESULTS.exists() else None


def pages() -> dict[str, str]:
    """All pages by the names of their files."""
    study = last()
    return {"README.md": table(study), **{f"{claim.id}.md": page(claim, study) for claim in registered().values()}}


def remake(study: Path | None = None) -> None:
    """Writes the pages and the verdicts of the story; with a study's folder, what they are made from as well."""
    if study is not None:
        take(study)
    made = pages()
    for stale in HERE.glob("*.md"):
        if stale.name not in made:
            stale.unlink()
    for name, words in made.items():
        (HERE / name).write_text(words, encoding="utf-8")
    if STORY.exists():
        STORY.write_text(story(STORY.read_text("utf-8"), last()), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, metavar="FOLDER", help="a finished study to take the results from")
    try:
        remake(parser.parse_args().study)
    except StudyError as error:
        parser.exit(2, f"{error}\n")
