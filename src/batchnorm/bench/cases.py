"""What is measured: shapes of real networks, tables, sequences and tiny inputs, in each format, dtype and mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import product

from ..errors import ArgumentError
from .networks import NETWORKS

__all__ = ["DTYPES", "FORMATS", "Case", "all_cases", "select", "usual_cases"]

FORMATS = ("contiguous", "channels-last")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Case:
    """One thing to measure: a layer, its input and what is asked of it.

    Args:
        shape: Of the input, (N, C, *spatial).
        activation: What follows the norm, by its name in :mod:`batchnorm.activation`.
        residual: Whether something is added between norm and activation.
        training: Forward and backward by the batch's statistics; else the forward pass of evaluation.
        format: ``"contiguous"`` or ``"channels-last"``; (N, C, L) is then stored (N, L, C).
        dtype: Of input and output; parameters are float32.
        occurs: How often each network (or kind of input) has it.
    """

    shape: tuple[int, ...]
    activation: str = "identity"
    residual: bool = False
    training: bool = True
    format: str = "contiguous"
    dtype: str = "float32"
    occurs: tuple[tuple[str, int], ...] = ()

    @property
    def mode(self) -> str:
        """``norm``, ``norm+act``, ``norm+add``, ``norm+add+act`` (forward and backward) or ``evaluation``."""
        if not self.training:
            return "evaluation"
        return "norm" + "+add" * self.residual + "+act" * (self.activation != "identity")

    @property
    def operation(self) -> str:
        """The mode with its activation's name, such as ``norm+add+relu``."""
        what = "+add" * self.residual + f"+{self.activation}" * (self.activation != "identity")
        return ("norm" if self.training else "evaluation") + what

    @property
    def size(self) -> str:
        """The shape as a word, such as ``32x64x56x56``."""
        return "x".join(map(str, self.shape))

    @property
    def name(self) -> str:
        """What it is called, and by which it can be chosen."""
        return f"{self.size}/{self.operation}/{self.format}/{self.dtype}"

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return 4 if self.dtype == "float32" else 2

    @property
    def bytes(self) -> int:
        """T: the bytes of its input."""
        total = self.item
        for length in self.shape:
            total *= length
        return total

    def matches(self, word: str) -> bool:
        """Whether a word names it: a network, shape, mode, operation, activation, format or dtype, or a glob of one.

        >>> case = Case((32, 64, 56, 56), "relu", occurs=(("resnet50", 6),))
        >>> case.matches("resnet50"), case.matches("32x64x*"), case.matches("*/contiguous/*"), case.matches("tiny")
        (True, True, True, False)
        """
        networks = [network for network, _ in self.occurs]
        dims = f"{max(1, len(self.shape) - 2)}d"
        fields = [self.name, self.size, self.mode, self.operation, self.activation, self.format, self.dtype, dims]
        return any(fnmatchcase(field, word) for field in [*fields, *networks])


# Inputs that belong to no one network: (kind, shape, residual); relu follows.
_OTHERS: tuple[tuple[str, tuple[int, ...], bool], ...] = (
    *(("tabular", (rows, columns), False) for rows in (128, 1024, 8192, 65536) for columns in (16, 128, 1024)),
    ("sequence", (32, 256, 1000), False),
    ("tiny", (2, 8), False),
    ("tiny", (64, 16), False),
    ("tiny", (64, 16, 8, 8), False),
    ("tiny", (8, 512, 7, 7), False),
    ("tiny", (8, 512, 7, 7), True),
)

# The usual choice takes from these what it needs to be representative in minutes: (shape, residual, dtypes).
_USUAL: dict[tuple[tuple[int, ...], str], Sequence[str]] = {
    ((32, 64, 112, 112), "norm+relu"): ("float32",),
    ((32, 64, 56, 56), "norm+relu"): DTYPES,
    ((32, 64, 56, 56), "norm+add+relu"): ("float32", "bfloat16"),
    ((32, 256, 56, 56), "norm+add+relu"): ("float32", "bfloat16"),
    ((32, 128, 28, 28), "norm+relu"): ("float32", "bfloat16"),
    ((32, 512, 28, 28), "norm+add+relu"): ("float32", "bfloat16"),
    ((32, 256, 14, 14), "norm+relu"): DTYPES,
    ((32, 1024, 14, 14), "norm+add+relu"): ("float32", "bfloat16"),
    ((32, 512, 7, 7), "norm+relu"): ("float32", "bfloat16"),
    ((32, 2048, 7, 7), "norm+add+relu"): ("float32", "bfloat16"),
    ((32, 144, 56, 56), "norm+relu6"): ("float32", "bfloat16"),
    ((32, 384, 14, 14), "norm+relu6"): ("float32", "bfloat16"),
    ((32, 64, 14, 14), "norm+add"): ("float32", "bfloat16"),
    ((32, 240, 28, 28), "norm+silu"): ("float32", "bfloat16"),
    ((32, 672, 14, 14), "norm+silu"): ("float32", "bfloat16"),
    ((32, 512, 28, 28), "norm+relu"): ("float32", "bfloat16"),
    ((2, 64, 32, 32, 32), "norm+relu"): ("float32", "bfloat16"),
    ((8192, 128), "norm+relu"): ("float32", "bfloat16"),
    ((65536, 128), "norm+relu"): ("float32",),
    ((1024, 1024), "norm+relu"): ("float32",),
    ((32, 256, 1000), "norm+relu"): ("float32", "bfloat16"),
    ((2, 8), "norm+relu"): ("float32",),
    ((64, 16), "norm+relu"): ("float32",),
    ((64, 16, 8, 8), "norm+relu"): ("float32",),
    ((8, 512, 7, 7), "norm+add+relu"): ("float32",),
    ((32, 256, 56, 56), "norm"): ("float32",),
    ((32, 128, 28, 28), "norm"): ("float32", "bfloat16"),
    ((32, 96, 14, 14), "norm"): ("float32",),
    ((32, 24, 56, 56), "norm"): ("float32",),
    ((64, 16, 8, 8), "norm"): ("float32",),
    ((32, 64, 56, 56), "evaluation+relu"): ("float32", "bfloat16"),
    ((32, 256, 14, 14), "evaluation+relu"): ("float32", "bfloat16"),
    ((32, 1024, 14, 14), "evaluation+add+relu"): ("float32", "bfloat16"),
    ((32, 144, 56, 56), "evaluation+relu6"): ("float32",),
    ((32, 240, 28, 28), "evaluation+silu"): ("float32",),
    ((64, 16, 8, 8), "evaluation+relu"): ("float32",),
}


def _layers() -> Iterator[tuple[str, tuple[int, ...], str, bool, int]]:
    """(network, shape, activation, residual, how often)."""
    for network, (samples, norms) in NETWORKS.items():
        for norm, times in Counter(norms()).items():
            yield network, (samples, norm.channels, *norm.spatial), norm.activation, norm.residual, times
    for kind, shape, residual in _OTHERS:
        yield kind, shape, "relu", residual, 1


@cache
def all_cases() -> tuple[Case, ...]:
    """Every distinct case, layer by layer in the order of the networks.

    A layer is measured as its network has it, in evaluation mode where there is something to fuse, and its norm alone;
    each in both formats and every dtype. A table (N, C) has one format.
    """
    found: dict[Case, Counter[str]] = {}
    for network, shape, activation, residual, times in _layers():
        plain = activation == "identity" and not residual
        kinds = [(activation, residual, True)]
        kinds += [] if plain else [(activation, residual, False), ("identity", False, True)]
        formats = FORMATS if len(shape) > 2 else FORMATS[:1]
        for (act, add, training), format, dtype in product(kinds, formats, DTYPES):
            case = Case(shape, act, add, training, format, dtype)
            found.setdefault(case, Counter())[network] += times
    return tuple(
        Case(case.shape, case.activation, case.residual, case.training, case.format, case.dtype, tuple(times.items()))
        for case, times in found.items()
    )


@cache
def usual_cases() -> tuple[Case, ...]:
    """The cases that run where none are chosen: some of every kind, in a few minutes on two cores."""
    return tuple(case for case in all_cases() if case.dtype in _USUAL.get((case.shape, case.operation), ()))


def select(choices: Sequence[str] = ()) -> tuple[Case, ...]:
    """The cases that any of ``choices`` names.

    Args:
        choices: Each is ``"all"``, ``"usual"``, or words with commas between them that must all match
            (:meth:`Case.matches`): ``"resnet50,float32,channels-last"``. None means the usual ones.

    Raises:
        ArgumentError: A choice that names no case.

    Example:
        >>> [case.name for case in select(["2x8,float32,norm+act"])]
        ['2x8/norm+relu/contiguous/float32']
    """
    chosen: set[Case] = set()
    for choice in choices or ("usual",):
        words = [word.strip() for word in choice.split(",") if word.strip()]
        cases = usual_cases() if "usual" in words else all_cases()
        words = [word for word in words if word not in ("all", "usual")]
        found = [case for case in cases if all(case.matches(word) for word in words)]
        if not found or not choice.strip(", "):
            networks = ", ".join([*NETWORKS, *dict.fromkeys(kind for kind, _, _ in _OTHERS)])
            unknown = [word for word in words if not any(case.matches(word) for case in all_cases())]
            what = f"no case is named {', '.join(unknown)}" if unknown else f"no case matches all of {choice!r}"
            raise ArgumentError(
                f"{what}.",
                f"use usual, all, a network or kind ({networks}), a mode (norm, norm+act, norm+add, norm+add+act, "
                f"evaluation), {', '.join(FORMATS)}, {', '.join(DTYPES)}, a shape such as 32x64x56x56, or a glob of "
                "one; `--list` shows the names.",
            )
        chosen |= set(found)
    return tuple(case for case in all_cases() if case in chosen)
