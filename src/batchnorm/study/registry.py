"""Finds the claims: every file in ``study/claims`` offers one as ``CLAIM``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache

from . import claims
from .claim import TIERS, Claim, SubjectClaim
from .error import StudyError
from .subjects import Subject

__all__ = ["registered", "select"]

# The order in which a page tells them: first what it is for, then how it works, then what can go wrong. A claim
# that is not named here comes after these.
_STORY = (
    # What batch norm does.
    "convergence",
    "learning-rate",
    "initialisation",
    "input-standardisation",
    "error-surface",
    "gamma-beta",
    "scale-invariance",
    "saturation",
    "residual-identity",
    "regularisation",
    "ingredients",
    "affine-only",
    # Why: what is contested.
    "sigmoid-distribution",
    "covariate-shift",
    "noisy-bn",
    "smoothness",
    "placement",
    # What hurts, and what helps against it.
    "gradient-explosion",
    "population-variance",
    "ema-vs-population",
    "batch-size",
    "ghost",
    "renorm",
    "dropout-shift",
    "domain-shift",
    "super-resolution",
    "eps-placement",
)


@cache
def registered() -> dict[str, Claim]:
    """All claims by id, in the order in which a page tells them.

    Raises:
        TypeError: If a file offers no claim.
        ValueError: If two files offer the same id.
    """
    found: dict[str, Claim] = {}
    for module in pkgutil.iter_modules(claims.__path__):
        claim = getattr(importlib.import_module(f"{claims.__name__}.{module.name}"), "CLAIM", None)
        if not isinstance(claim, Claim):
            raise TypeError(f"{module.name}: a file in study/claims sets CLAIM to an instance of a Claim")
        if claim.about.id in found:
            raise ValueError(f"two claims are named {claim.about.id!r}")
        found[claim.about.id] = claim
    order = {name: place for place, name in enumerate(_STORY)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def select(names: Sequence[str], tier: str = TIERS[0], subject: Subject | None = None) -> list[Claim]:
    """The claims of these names, each once, as that tier runs them.

    Args:
        names: Ids, of any tier; where none is given, the claims of the tier and below.
        tier: One of :data:`TIERS`.
        subject: A network that they are put to instead of the study's own; without names, to those that can be.

    Raises:
        StudyError: If a name is not known, or cannot be put to another network; the message lists those that can.
    """
    known = registered()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise StudyError(f"unknown claim: {', '.join(unknown)}. Known claims: {', '.join(known)}.")
    chosen = [known[name] for name in dict.fromkeys(names)] or [
        claim for claim in known.values() if TIERS.index(claim.about.tier) <= TIERS.index(tier)
    ]
    grown = [claim.at(tier) for claim in chosen]
    if subject is None:
        return grown
    if fixed := [claim.id for claim in grown if not isinstance(claim, SubjectClaim)] if names else []:
        able = ", ".join(claim.id for claim in known.values() if isinstance(claim, SubjectClaim))
        raise StudyError(
            f"{', '.join(fixed)}: not about a network that one could give (--model).", f"name some of {able}"
        )
    return [claim.on(subject) for claim in grown if isinstance(claim, SubjectClaim)]
