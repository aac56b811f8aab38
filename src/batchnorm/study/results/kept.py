"""A finished study, read back from its folder: what ``results.json`` says, and from the runs what the claims conclude.

``results.json`` of any version is read: what it lacks is left open, and what cannot be read is named.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..claim import TIERS, Claim, Effect, Result, Run, Value, Verdict
from ..data.source import Source
from ..engine import Outcome, conclude
from ..error import StudyError
from ..registry import registered
from ..statistics import Interval
from .export import FORMAT

__all__ = ["RESULTS", "KeptClaim", "KeptStudy", "outcomes", "read"]

RESULTS = "results.json"
_MEND = "name the folder of a finished study, or its results.json"


@dataclass(frozen=True)
class KeptClaim:
    """What a study said about a claim.

    Args:
        id: Its name on the command line.
        title: The claim in a line.
        verdict: One of three.
        reason: Why.
        effects: The effects; the first is the one that decided.
        findings: What else the results show.
        settings: The claim's own, as Python writes them.
        network: What it was tried on, in words; empty where it is the claim's own matter or was not kept.
        short: What stands in a row: an effect, and of what.
    """

    id: str
    title: str
    verdict: Verdict
    reason: str
    effects: tuple[Effect, ...]
    findings: tuple[str, ...]
    settings: str
    network: str
    short: tuple[str, str]


@dataclass(frozen=True)
class KeptStudy:
    """A study as its ``results.json`` has it.

    Args:
        path: Where it was read from.
        environment: What it ran on.
        claims: Its claims by id, in its order.
        plain: Everything in the file.
    """

    path: Path
    environment: Mapping[str, Any]
    claims: Mapping[str, KeptClaim]
    plain: Mapping[str, Any]


def read(path: Path) -> KeptStudy:
    """Reads a study's folder, or its ``results.json``.

    Raises:
        StudyError: If there is none, or it is not one of a study.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        plain = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise StudyError(f"{file}: {error.strerror or error}.", _MEND) from error
    except ValueError as error:
        raise StudyError(f"{file} is not JSON: {error}.", _MEND) from error
    except RecursionError as error:
        raise StudyError(f"{file} holds no study: it is nested too deeply.", _MEND) from error
    if not isinstance(plain, dict) or not {"environment", "claims"} <= plain.keys():
        raise StudyError(f"{file} holds no study: it has no 'environment' and 'claims'.", _MEND)
    version = plain.get("format", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise StudyError(
            f"{file} has format {version!r}; this version of batchnorm reads up to {FORMAT}.", "install a newer one"
        )
    try:
        claims = {name: _claim(name, each) for name, each in plain["claims"].items()}
        return KeptStudy(file, dict(plain["environment"]), claims, plain)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        raise StudyError(
            f"{file}: it cannot be read as a study ({type(error).__name__}: {error}).", "run the study again"
        ) from error


def _claim(name: str, kept: Mapping[str, Any]) -> KeptClaim:
    effects = tuple(map(_effect, kept["effects"]))
    first = (str(effects[0]), effects[0].name) if effects else ("none", str(kept["reason"]))
    effect, what = kept.get("in short", first)
    # Files of before said of an effect that is none that it is "no number".
    effect = first[0] if effects and str(effect).startswith("no number") else effect
    return KeptClaim(
        name,
        str(kept["title"]),
        Verdict(kept["verdict"]),
        str(kept["reason"]),
        effects,
        tuple(map(str, kept.get("findings", ()))),
        str(kept.get("settings", "")),
        str(kept.get("network") or ""),
        (str(effect), str(what)),
    )


def _effect(kept: Mapping[str, Any]) -> Effect:
    # Ends that are infinite were written as null; so was an estimate that is none.
    ends = {"estimate": math.nan, "low": -math.inf, "high": math.inf}
    estimate, low, high = (end if kept[name] is None else float(kept[name]) for name, end in ends.items())
    unit = str(kept.get("unit", ""))
    # Files of version 1 did not say what is a ratio; those in × are.
    ratio = bool(kept.get("ratio", unit == "×"))
    return Effect(
        str(kept["name"]), Interval(estimate, low, high, int(kept["seeds"])), unit, str(kept.get("note", "")), ratio
    )


def outcomes(study: KeptStudy) -> list[Outcome]:
    """Gives the claims with the results of their runs and what they conclude from them, charts included.

    Raises:
        StudyError: If the runs' values are not there, a claim ran with other settings than it has now, or its rule
            says something else by now.
    """
    seeds = study.environment.get("seeds", [])
    if study.environment.get("control"):
        raise StudyError(f"{study.path} is a study with the effect taken away.", "name one of the claims themselves")
    exact = _exact(study.path.with_name("runs.csv"))
    claims: list[Claim] = []
    results: dict[str, list[Result]] = {}
    for kept in study.claims.values():
        claims.append(_as_it_ran(kept))
        plain = study.plain["claims"][kept.id].get("runs")
        if plain is None:
            raise StudyError(
                f"{study.path} does not hold the runs of {kept.id}.", "name the folder of the study itself"
            )
        results[kept.id] = [_result(kept.id, run, exact) for run in plain]
    found = conclude(claims, results, seeds)
    for outcome, kept in zip(found, study.claims.values(), strict=True):
        if (outcome.conclusion.verdict, outcome.conclusion.reason) != (kept.verdict, kept.reason):
            raise StudyError(
                f"{kept.id}: its rule does not say of these runs what {study.path} says.",
                "run the study again; what is kept is not run twice",
            )
    return found


def _as_it_ran(kept: KeptClaim) -> Claim:
    """The claim with the settings that it ran with."""
    claim = registered().get(kept.id)
    if claim is None:
        raise StudyError(f"{kept.id}: there is no such claim.")
    for tier in TIERS:
        if repr(claim.at(tier)) == kept.settings:
            return claim.at(tier)
    raise StudyError(f"{kept.id} ran with other settings than it has now.", "run the study again")


_Place = tuple[str, str, int, str, int]


def _exact(path: Path) -> dict[_Place, float]:
    """Values of runs that JSON cannot hold: those that are not finite, by claim, arm, seed, name and number."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {
                (row["claim"], row["arm"], int(row["seed"]), row["metric"], int(row["index"])): float(row["value"])
                for row in csv.DictReader(file)
                if row["value"] in ("nan", "inf", "-inf")
            }
    except FileNotFoundError as error:
        raise StudyError(
            f"there is no {path}, which holds what JSON cannot.", "name the study's whole folder"
        ) from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise StudyError(f"{path} cannot be read: {error}.", "run the study again") from error


def _result(claim: str, kept: Mapping[str, Any], exact: Mapping[_Place, float]) -> Result:
    def values() -> Iterator[tuple[str, Value]]:
        for name, value in kept["values"].items():
            places = [
                (claim, kept["arm"], kept["seed"], name, index)
                for index in range(len(value) if isinstance(value, list) else 1)
            ]
            items = value if isinstance(value, list) else [value]
            whole = [exact[place] if item is None else item for place, item in zip(places, items, strict=True)]
            yield name, whole if isinstance(value, list) else whole[0]

    data = None if kept["data"] is None else Source(kept["data"])
    return Result(Run(claim, kept["arm"], kept["seed"], data), dict(values()), float(kept["seconds"]))
