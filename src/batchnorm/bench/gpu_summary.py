"""What rows of a GPU say beside the targets there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .contenders import BATCHNORM, COMPILE, EAGER, LEAN
from .finding import FUSED_MODES, Finding, number, quantile, ratio_finding
from .row import COPY, MODEL, TIMED, Row

__all__ = ["DENSENET", "RESNET", "TARGETS", "Target", "bandwidth", "gpu_findings"]

#: The networks of ``benchmarks/gpu.py``, as rows name them.
RESNET, DENSENET = "ResNet-50", "DenseNet-121"


@dataclass(frozen=True)
class Target:
    """A median of ratios, and what it should reach.

    Attributes:
        words: What it is.
        contender: Whose time is divided by ours.
        modes: Of which cases.
        least: The target.
    """

    words: str
    contender: str
    modes: tuple[str, ...]
    least: float


#: The medians.
TARGETS = (
    Target("norm (+ add) + act, by eager", EAGER, FUSED_MODES, 2.0),
    Target("norm (+ add) + act, by torch.compile", COMPILE, FUSED_MODES, 1.15),
    Target("norm alone, by eager", EAGER, ("norm",), 1.3),
    Target("evaluation, by eager", EAGER, ("evaluation",), 1.8),
)


def gpu_findings(rows: Iterable[Row]) -> list[Finding]:
    """The numbers behind the project's targets on a GPU, each from the rows of GPUs alone.

    A ratio is another's time by ours. "Slower" is judged by the whole 95% interval: beyond noise.
    """
    timed = [row for row in rows if row.status == TIMED and row.environment.device == "cuda"]
    cases = [row for row in timed if row.of_a_case]
    found = []
    for target in TARGETS:
        of = [row for row in cases if row.contender == target.contender and row.mode in target.modes and row.ratio]
        found.append(ratio_finding(f"{target.words}: median", of, target.least))
        if target.contender == COMPILE:
            found.append(_slower("the same, share slower beyond noise", of))
    eager = [row for row in cases if row.contender == EAGER and row.ratio is not None]
    found.append(_slower("any case, share slower than eager beyond noise", eager))
    ours = [row for row in cases if row.contender == BATCHNORM and row.mode != "evaluation" and row.times_limit]
    large = [row for row in ours if _beyond_the_l2(row)]
    limit = quantile(large, 0.5, lambda row: row.times_limit)
    found.append(
        Finding("time by the limit, training, x and y beyond the L2: median", limit, 1.15, len(large), most=True)
    )
    return [*found, *_of_models(timed)]


def bandwidth(rows: Iterable[Row]) -> float | None:
    """Bytes a second, read and written, of the fastest copy of plain memory that rows tell of."""
    copies = [row for row in rows if row.mode == COPY and row.microseconds and row.tensor_bytes]
    return max((2e6 * number(row.tensor_bytes) / number(row.microseconds) for row in copies), default=None)


def _beyond_the_l2(row: Row) -> bool:
    return 2 * (row.tensor_bytes or 0) > row.environment.l2_bytes


def _slower(words: str, rows: Sequence[Row]) -> Finding:
    slower = sum(number(row.ratio_high) < 1 for row in rows)
    return Finding(words, slower / len(rows) if rows else None, 0.0, len(rows), most=True, share=True)


def _of_models(rows: Sequence[Row]) -> list[Finding]:
    found = {(row.case, row.contender): row for row in rows if row.mode == MODEL}

    def finding(words: str, value: float | None, target: float, most: bool = False) -> Finding:
        return Finding(words, value, target, int(value is not None), most)

    def kept(network: str) -> float | None:
        lean, eager = found.get((network, LEAN)), found.get((network, EAGER))
        if lean is None or eager is None or lean.kept_bytes is None or not eager.kept_bytes:
            return None
        return lean.kept_bytes / eager.kept_bytes

    def ratio(network: str, contender: str) -> float | None:
        row = found.get((network, contender))
        return None if row is None else row.ratio

    return [
        finding(f"{RESNET} AMP channels-last: eager ÷ fuse", ratio(RESNET, EAGER), 1.25),
        finding(f"{RESNET} AMP channels-last: torch.compile ÷ fuse", ratio(RESNET, COMPILE), 1.0),
        finding(f"{RESNET}: bytes kept with lean ÷ eager's", kept(RESNET), 0.6, most=True),
        finding(f"{DENSENET}: bytes kept with lean ÷ eager's", kept(DENSENET), 0.56, most=True),
        finding(f"{RESNET}: time with lean ÷ without", ratio(RESNET, LEAN), 1.05, most=True),
        finding(f"{DENSENET}: time with lean ÷ without", ratio(DENSENET, LEAN), 1.05, most=True),
    ]
