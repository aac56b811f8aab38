"""What a rule is: a code and a name, what it needs to look at, and a check that sees evidence and nothing else."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import ClassVar

from .evidence import Evidence, Layer
from .finding import Finding, Fix, Measurement, Severity

__all__ = ["Need", "Rule"]


class Need(Enum):
    """What a rule cannot do without. The value says what is missing where it is not there."""

    MODEL = "only tensors were given, and this needs the model"
    OPTIMIZER = "no optimizer was given (optimizer=)"
    GRAPH = "what feeds what is not known"
    BATCHES = "no batches were given (batches=)"
    BACKWARD = "no backward pass was run"
    DEPLOYMENT = "the model is not given as it is deployed: in evaluation mode, without optimizer and loss"
    RANKS = "this is not one of several processes (torch.distributed)"


class Rule(ABC):
    """One mistake. Its documentation is the docstring of its file: ``batchnorm explain`` and the docs are made of it.

    That docstring starts with a line ``name: the mistake in a sentence.`` and has the sections ``## What it does``,
    ``## Why it is bad``, ``## Evidence``, ``## Example``, ``## Use instead``, ``## Fix safety`` and ``## References``.
    The examples are doctests: the first one plants the mistake and shows that it is found.

    Attributes:
        code: ``BN`` and three digits.
        name: It reads as the mistake.
        severity: Of its findings, where they do not say otherwise.
        needs: Without these it is not run, and the diagnosis says so. (Tensors of norms are always there.)
        uses: What it takes into account where it can be had without asking the user for more.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    needs: ClassVar[frozenset[Need]] = frozenset()
    uses: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def check(self, evidence: Evidence) -> Iterable[Finding]:
        """What it finds. It does not run the model, and changes nothing."""

    @property
    def page(self) -> str:
        """Its documentation, in Markdown, with a title."""
        words = inspect.cleandoc(sys.modules[type(self).__module__].__doc__ or "")
        return f"# {self.code} {self.name}\n\n{self.summary}\n{words.partition(chr(10))[2].rstrip()}\n"

    @property
    def summary(self) -> str:
        """The mistake in a sentence."""
        words = inspect.cleandoc(sys.modules[type(self).__module__].__doc__ or "")
        sentence = words.partition("\n")[0].partition(": ")[2]
        return sentence[:1].upper() + sentence[1:]

    def found(
        self,
        layer: Layer | str,
        message: str,
        evidence: Mapping[str, Measurement],
        mend: str,
        *,
        severity: Severity | None = None,
        fix: Fix | None = None,
    ) -> Finding:
        """A finding of this rule, at a layer or a path."""
        path = layer if isinstance(layer, str) else layer.path
        return Finding(self.code, self.name, path, severity or self.severity, message, dict(evidence), mend, fix)
