"""The three-way tolerance on inputs chosen to break batch norm: ours, torch's, and the float64 reference.

``python benchmarks/accuracy.py`` prints the table and writes ``benchmarks/accuracy.csv`` and ``docs/accuracy.md``. The
tests take the same cases from here (``tests/ops/test_accuracy.py``).

An error is the largest absolute difference from the reference, divided by the reference's largest magnitude (for the
running mean: by the standard deviation, where that is larger), and the worst of several draws. Our kernels are two:
``native`` (torch's own arithmetic) and ``eager`` (plain operations, which serve masks and higher derivatives; reached
here through a mask that is true everywhere).
"""

from __future__ import annotations

import csv
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from batchnorm import reference
from batchnorm.functional import batch_norm

DRAWS = 5
QUANTITIES = ("output", "running_mean", "running_var", "grad_input", "grad_weight", "grad_bias")
KERNELS = ("native", "eager")

# The floor under "twice torch's error", which can be zero by luck: a few roundings of the result's own dtype.
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float64: 1e-14}


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _outlier(*shape: int) -> Tensor:
    x = _normal(*shape)
    x.view(-1)[torch.randint(x.numel(), ())] = 1e6
    return x


# A draw in float64 by name. It is then rounded to the dtype: the reference sees the rounded input.
CASES: dict[str, Callable[[], Tensor]] = {
    "standard normal": lambda: _normal(32, 8, 7, 7),
    "mean 1e4, std 1e-2": lambda: 1e4 + 1e-2 * _normal(64, 8, 6, 6),
    "mean 1e6, std 1": lambda: 1e6 + _normal(64, 8, 6, 6),
    "mean 1e6, std 1e-1": lambda: 1e6 + 1e-1 * _normal(64, 8, 6, 6),
    "scale 1e-20": lambda: 1e-20 * _normal(64, 8, 6, 6),
    "scale 1e15": lambda: 1e15 * _normal(64, 8, 6, 6),
    "denormals": lambda: 1e-40 * _normal(64, 8, 6, 6),
    "constant channels": lambda: _normal(1, 8, 1, 1).expand(16, 8, 5, 5) * 100,
    "one outlier of 1e6": lambda: _outlier(32, 8, 7, 7),
    "two values a channel": lambda: _normal(2, 64),
    "37 channels": lambda: _normal(1000, 37),
    "37 channels, 3x5": lambda: _normal(16, 37, 3, 5),
    "one channel": lambda: _normal(64, 1, 9, 9),
    "long reduction (1e6)": lambda: 3 + _normal(1_000_000, 2),
    "long reduction, spatial": lambda: 3 + _normal(2, 3, 512, 512),
}

# What half precision can hold at all.
HALF = (
    "standard normal",
    "two values a channel",
    "37 channels",
    "37 channels, 3x5",
    "one channel",
    "constant channels",
)


@dataclass(frozen=True)
class Row:
    """One measured line of the table."""

    case: str
    dtype: str
    format: str
    kernel: str
    quantity: str
    error: float
    torch_error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether our error is at most twice torch's, or the floor."""
        return self.error <= self.allowed


def formats(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The memory formats that an input of this many dimensions has."""
    yield "contiguous", x.contiguous()
    if x.dim() == 4:
        yield "channels-last", x.contiguous(memory_format=torch.channels_last)


def _truth(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor) -> dict[str, np.ndarray]:
    arrays = [t.detach().double().numpy() for t in (x, weight, bias, dy)]
    output, saved = reference.forward(*arrays[:3])
    found = reference.backward(arrays[3], saved)
    moments = reference.moments(arrays[0])
    results = (output, moments.mean, moments.unbiased_variance, found.x, found.weight, found.bias)
    return {name: np.asarray(value) for name, value in zip(QUANTITIES, results, strict=True)}


def _run(kernel: str, x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    mean, var = torch.zeros_like(weight.detach()), torch.ones_like(weight.detach())
    if kernel == "torch":
        output = torch.nn.functional.batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0)
    else:
        mask = torch.ones(x.shape[0], *x.shape[2:], dtype=torch.bool) if kernel == "eager" else None
        output = batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0, mask=mask)
    gradients = torch.autograd.grad(output, (x, weight, bias), dy)
    return dict(zip(QUANTITIES, (output, mean, var, *gradients), strict=True))


def _scales(truth: dict[str, np.ndarray]) -> dict[str, float]:
    scales = {name: float(np.abs(value).max()) or 1.0 for name, value in truth.items()}
    scales["running_mean"] = max(scales["running_mean"], float(np.sqrt(truth["running_var"].max())))
    return scales


def measure(name: str, dtype: torch.dtype = torch.float32, draws: int = DRAWS) -> list[Row]:
    """Every row of one case: memory formats × kernels × quantities, each the worst of ``draws``."""
    worst: dict[tuple[str, str, str], float] = {}
    floor: dict[str, float] = {}
    for draw in range(draws):
        torch.manual_seed(draw)
        base = CASES[name]().to(dtype)
        channels = base.shape[1]
        half = dtype in (torch.bfloat16, torch.float16)
        weight, bias = (_normal(channels).to(torch.float32 if half else dtype) for _ in range(2))
        dy = _normal(*base.shape).to(dtype)
        truth = _truth(base, dy, weight, bias)
        scales = _scales(truth)
        for format, x in formats(base):
            for kernel in ("torch", *KERNELS):
                for quantity, value in _run(kernel, x, dy, weight, bias).items():
                    key = (format, kernel, quantity)
                    error = float(np.abs(value.detach().double().numpy() - truth[quantity]).max())
                    worst[key] = max(worst.get(key, 0.0), error / scales[quantity])
                    # Below the normal numbers a step is absolute.
                    steps = 2 * torch.finfo(value.dtype).smallest_normal * torch.finfo(value.dtype).eps
                    floor[quantity] = max(floor.get(quantity, FLOOR[dtype]), steps / scales[quantity])
    rows = []
    for (format, kernel, quantity), error in worst.items():
        if kernel != "torch":
            theirs = worst[format, "torch", quantity]
            allowed = 2 * theirs + floor[quantity]
            rows.append(Row(name, str(dtype).removeprefix("torch."), format, kernel, quantity, error, theirs, allowed))
    return rows


def page(rows: list[Row]) -> str:
    """The rows as a Markdown page: the worst draw of each case, ours beside torch's."""
    lines = [
        "# Accuracy on inputs chosen to break batch norm",
        "",
        "Written by `python benchmarks/accuracy.py`; every row is in `benchmarks/accuracy.csv`.",
        "",
        "Each cell is *ours / torch's*: the largest error against the float64 reference, relative to the largest true",
        f"value, worst of {DRAWS} draws (training mode, forward and backward). The rule: ours is at most twice",
        "torch's, plus a few roundings. `native` hands the arithmetic to torch's own kernels, `eager` is plain",
        "operations (masks, higher derivatives). Where torch's channels-last kernel loses a small spread beside a",
        "large mean, `native` loses it too.",
        "",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}.",
        "",
        "| case | dtype | format | kernel | " + " | ".join(f"`{quantity}`" for quantity in QUANTITIES) + " |",
        "|---|---|---|---|" + "---|" * len(QUANTITIES),
    ]
    for (case, dtype, format, kernel), found in _grouped(rows).items():
        cells = [f"{found[q].error:.0e} / {found[q].torch_error:.0e}{_mark(found[q])}" for q in QUANTITIES]
        lines.append(f"| {case} | {dtype} | {format} | {kernel} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mark(row: Row) -> str:
    return "" if row.holds else " **!**"


def _grouped(rows: list[Row]) -> dict[tuple[str, str, str, str], dict[str, Row]]:
    groups: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row.case, row.dtype, row.format, row.kernel), {})[row.quantity] = row
    return groups


def main() -> int:
    """Measure everything; exit code 1 where a row breaks the tolerance."""
    rows = [row for name in CASES for row in measure(name)]
    for dtype in (torch.bfloat16, torch.float16):
        rows += [row for name in HALF for row in measure(name, dtype)]
    text = page(rows)
    print(text)
    (Path(__file__).parents[1] / "docs" / "accuracy.md").write_text(text)
    path = Path(__file__).with_suffix(".csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), "holds"])
        writer.writeheader()
        for row in rows:
            numbers = {k: f"{v:.3e}" for k, v in asdict(row).items() if isinstance(v, float)}
            writer.writerow({**asdict(row), **numbers, "holds": row.holds})
    broken = [row for row in rows if not row.holds]
    print(f"{len(rows)} rows, {len(broken)} over the tolerance; written to {path.name}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
