"""Finds the claims: every file in ``study/claims`` offers one as ``CLAIM``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache

from . import claims
from .claim import TIERS, Claim
from .error import StudyError

__all__ = ["registered", "select"]


@cache
def registered() -> dict[str, Claim]:
    """All claims by id, in the order of their ids.

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
    return dict(sorted(found.items()))


def select(names: Sequence[str], tier: str = TIERS[0]) -> list[Claim]:
    """The claims of these names, each once and of any tier; where no name is given, those of a tier and below.

    Raises:
        StudyError: If a name is not known; the message lists those that are.
    """
    known = registered()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise StudyError(f"unknown claim: {', '.join(unknown)}. Known claims: {', '.join(known)}.")
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    return [claim for claim in known.values() if TIERS.index(claim.about.tier) <= TIERS.index(tier)]
