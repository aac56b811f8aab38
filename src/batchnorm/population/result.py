"""What ``recalibrate`` and ``adapt`` found: how far each layer's statistics have moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Moved", "Recalibration"]


@dataclass(frozen=True)
class Moved:
    """One layer's new statistics beside its old ones.

    Attributes:
        layer: Its path in the model.
        kind: Its class.
        values: How many values a channel the statistics are of.
        mean_shift: |new − old mean| in standard deviations √(old variance + eps), of the channel where it is largest.
        variance_ratio: (new variance + eps) / (old variance + eps), of the channels where it is smallest and largest.
    """

    layer: str
    kind: str
    values: int
    mean_shift: float
    variance_ratio: tuple[float, float]


@dataclass(frozen=True)
class Recalibration:
    """What was done; ``print`` it for a table.

    Attributes:
        layers: Those whose statistics are new, in the order of the model.
        unreached: Paths of those that no batch reached; they are as they were.
        batches: How many batches were seen, on all ranks.
        samples: How many samples, on all ranks; None where they could not be counted.
        order: ``"one-pass"`` or ``"layer-by-layer"``.
        passes: How many passes over the batches there were.
    """

    layers: Sequence[Moved]
    unreached: Sequence[str]
    batches: int
    samples: int | None
    order: str
    passes: int

    def __str__(self) -> str:
        head = ("layer", "class", "values", "mean moved by", "variance changed by")
        rows = [head]
        for each in self.layers:
            low, high = each.variance_ratio
            path, shift = each.layer or "(the model itself)", f"{each.mean_shift:.3g} std"
            rows.append((path, each.kind, str(each.values), shift, f"×{low:.3g} to ×{high:.3g}"))
        rows.extend((path, "", "0", "kept", "kept") for path in self.unreached)
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        samples = "" if self.samples is None else f" of {self.samples} samples"
        passes = "1 pass" if self.passes == 1 else f"{self.passes} passes"
        return "\n".join([*table, f"{self.batches} batches{samples}, {self.order}, {passes}"])
