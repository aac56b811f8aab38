"""Finds the rules: every file in ``doctor/rules`` offers one as ``RULE``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache

from ..errors import ArgumentError
from . import rules
from .rule import Rule

__all__ = ["matching", "registered", "rule_of", "select"]


@cache
def registered() -> dict[str, Rule]:
    """All rules by code, in order.

    Raises:
        TypeError: If a file offers no rule.
        ValueError: If two files offer the same code or name.
    """
    found: dict[str, Rule] = {}
    for module in pkgutil.iter_modules(rules.__path__):
        rule = getattr(importlib.import_module(f"{rules.__name__}.{module.name}"), "RULE", None)
        if not isinstance(rule, Rule):
            raise TypeError(f"{module.name}: a file in doctor/rules sets RULE to an instance of a Rule")
        if rule.code in found or rule.name in {other.name for other in found.values()}:
            raise ValueError(f"two rules are {rule.code} or {rule.name}")
        found[rule.code] = rule
    return dict(sorted(found.items()))


def rule_of(name: str) -> Rule:
    """The rule of a code or a name, in capitals or not.

    Raises:
        ArgumentError: There is none.
    """
    for rule in registered().values():
        if name.casefold() in (rule.code.casefold(), rule.name):
            return rule
    raise ArgumentError(f"there is no rule {name!r}.", f"the rules are {', '.join(registered())}.")


def select(chosen: Iterable[str] | None = None, ignored: Iterable[str] | None = None) -> list[Rule]:
    """The rules that are chosen and not ignored; all are chosen where nothing is said.

    Args:
        chosen: Codes, the beginnings of codes (``"BN01"``) or names.
        ignored: Likewise.

    Raises:
        ArgumentError: One of these means no rule, or none is left.

    Example:
        >>> [rule.code for rule in select(["BN00"], ["poisoned-statistics"])][:4]
        ['BN001', 'BN002', 'BN003', 'BN005']
    """
    known = registered()
    wanted = set(known) if chosen is None else matching(chosen)
    left_out = matching(ignored or ())
    if wanted <= left_out:
        raise ArgumentError(
            "no rule is left." if wanted else "no rule is selected.",
            "leave select out for all rules, and ignore fewer.",
        )
    return [rule for code, rule in known.items() if code in wanted and code not in left_out]


def matching(words: Iterable[str]) -> set[str]:
    """The codes of the rules that words mean: codes, the beginnings of codes, or names.

    Raises:
        ArgumentError: One of these means no rule.
    """
    words = [words] if isinstance(words, str) else list(words)
    found = set()
    for word in words:
        codes = {
            code
            for code, rule in registered().items()
            if word and (code.startswith(word.strip().upper()) or rule.name == word.strip().casefold())
        }
        if not codes:
            raise ArgumentError(
                f"{word!r} is neither a rule nor the beginning of one's code.",
                f"give codes such as BN001 or BN01, or names; the rules are {', '.join(registered())}.",
            )
        found |= codes
    return found
