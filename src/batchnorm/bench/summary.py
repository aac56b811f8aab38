"""What rows say beside the targets: medians of ratios by kind of case, losses, and the distance to the limit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .contenders import BATCHNORM, COMPILE, EAGER, OURS
from .finding import FUSED_MODES, LARGE, Finding, number, quantile, ratio_finding
from .gpu_summary import gpu_findings
from .row import TIMED, WRONG, Row

__all__ = ["Finding", "Memory", "findings", "losses", "memory", "noise", "side_by_side", "wrong"]

_MEGABYTE = 1e6
_NOISY = 1.3  # high by low end of an interval


def side_by_side(row: Row) -> bool:
    """Whether the channels of a position lie side by side in memory: channels-last, and every (N, C)."""
    return row.format == "channels-last" or row.shape.count("x") == 1


def findings(rows: Iterable[Row]) -> list[Finding]:
    """The numbers behind the project's targets, each from the rows alone: those on a GPU where the rows are of one.

    A ratio is another's time by ours: 2 means that ours takes half the time.
    """
    rows = list(rows)
    if any(row.environment.device == "cuda" for row in rows):
        return gpu_findings(rows)
    timed = [row for row in rows if row.status == TIMED and row.of_a_case]
    eager = [row for row in timed if row.contender == EAGER and row.ratio is not None]
    compiled = [row for row in timed if row.contender == COMPILE and row.ratio is not None]
    ours = [row for row in timed if row.contender == BATCHNORM]
    fused = [row for row in eager if row.mode in FUSED_MODES]
    apart = [row for row in fused if not side_by_side(row)]
    beside = [row for row in fused if side_by_side(row)]
    over = [row for row in fused if (row.tensor_bytes or 0) > _MEGABYTE]
    large = [row for row in ours if (row.tensor_bytes or 0) >= LARGE and row.mode != "evaluation" and row.times_limit]
    fused_compiled = [row for row in compiled if row.mode in FUSED_MODES]
    below = [row for row in eager if number(row.ratio) < 1]
    return [
        ratio_finding("norm (+ add) + act, contiguous, by eager: median", apart, 3.0),
        ratio_finding("norm (+ add) + act, channels-last and (N, C), by eager: median", beside, 2.0),
        ratio_finding("norm (+ add) + act over 1 MB, by eager: 10th percentile", over, 1.5, 0.1),
        ratio_finding("norm (+ add) + act, by torch.compile: median", fused_compiled, 3.0),
        ratio_finding("norm alone, by eager: median", [row for row in eager if row.mode == "norm"], 2.0),
        ratio_finding("evaluation, by eager: median", [row for row in eager if row.mode == "evaluation"], 1.8),
        Finding(
            "share of all cases slower than eager",
            len(below) / len(eager) if eager else None,
            None,
            len(eager),
            most=True,
            share=True,
        ),
        Finding(
            "share slower than eager beyond noise (the interval of the ratio ends below 1)",
            len(losses(eager)) / len(eager) if eager else None,
            0.0,
            len(eager),
            most=True,
            share=True,
        ),
        Finding(
            f"time by the limit, training, inputs from {LARGE / 1e6:.0f} MB: median",
            quantile(large, 0.5, lambda row: row.times_limit),
            1.25,
            len(large),
            most=True,
        ),
    ]


def losses(rows: Iterable[Row]) -> list[Row]:
    """The rows of eager torch that are faster than ours beyond noise, the worst first."""
    found = [row for row in rows if row.contender == EAGER and row.ratio_high is not None and row.ratio_high < 1]
    return sorted(found, key=lambda row: number(row.ratio))


def noise(rows: Iterable[Row]) -> str:
    """A warning where the intervals of the ratios are wide: something else is running. Empty where they are not."""
    spans = [
        row.ratio_high / row.ratio_low for row in rows if row.contender == EAGER and row.ratio_high and row.ratio_low
    ]
    span = float(np.median(spans)) if spans else 1.0
    if span < _NOISY:
        return ""
    return (
        f"These times are noisy: in half of the cases the 95% interval of the ratio to eager spans a factor of "
        f"{span:.1f} or more. Something else uses the processor, or there are too few rounds."
    )


def wrong(rows: Iterable[Row], contenders: Collection[str] = OURS) -> list[Row]:
    """The rows of these contenders whose results broke the tolerance."""
    return [row for row in rows if row.contender in contenders and row.status == WRONG]


@dataclass(frozen=True)
class Memory:
    """What page faults cost.

    Attributes:
        ours: Median share of our steps' processor time, on large inputs.
        eager: The same of eager torch.
        cases: How many rows are behind it.
        allocator: What the process's environment said of its memory.
    """

    ours: float
    eager: float
    cases: int
    allocator: str

    @property
    def sentence(self) -> str:
        """What a user should know, and what helps."""
        told = (
            f"Page faults took {100 * self.ours:.0f}% of the processor time of our steps and "
            f"{100 * self.eager:.0f}% of eager's (medians of {self.cases} cases from {LARGE / 1e6:.0f} MB)"
        )
        set_up = f", with {self.allocator}" if self.allocator else ""
        if max(self.ours, self.eager) < 0.05:
            return f"{told}{set_up}: memory is no bottleneck here."
        return (
            f"{told}{set_up}: large tensors come as fresh memory at every step, which the system maps and zeroes. A "
            "malloc that keeps its memory ends that, by LD_PRELOAD: tcmalloc, or jemalloc with "
            "MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1. THP_MEM_ALLOC_ENABLE=1 makes it cheaper for torch."
        )


def memory(rows: Sequence[Row]) -> Memory | None:
    """What page faults cost on large inputs; None where no row tells it."""
    large = [row for row in rows if (row.tensor_bytes or 0) >= LARGE and row.fault_share is not None]
    ours = [row for row in large if row.contender == BATCHNORM]
    eager = [row for row in large if row.contender == EAGER]
    if not ours or not eager:
        return None
    return Memory(
        number(quantile(ours, 0.5, lambda row: row.fault_share)),
        number(quantile(eager, 0.5, lambda row: row.fault_share)),
        len(ours),
        ours[-1].environment.allocator,
    )
