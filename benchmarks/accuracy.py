"""The three-way tolerance on inputs chosen to break batch norm: ours, torch's, and the float64 reference.

``python benchmarks/accuracy.py`` prints the table and writes ``benchmarks/accuracy.csv`` and ``docs/accuracy.md``. The
tests take the same cases from here (``tests/ops/test_accuracy.py``).

An error is the largest absolute difference from the reference, divided by the reference's largest magnitude (for the
running mean: by the standard deviation, where that is larger), and the worst of several draws. Each of our sets of
kernels is called by itself, whatever would serve such an input: ``cpu`` (compiled; what serves the CPU where they were
built), ``native`` (torch's own arithmetic) and ``eager`` (plain operations, which serve higher derivatives).
"""

from __future__ import annotations

import csv
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from batchnorm import Activation, reference
from batchnorm.bench.tolerance import RESOLUTION
from batchnorm.ops import cpu, eager, native

DRAWS = 5
EPS = 1e-5
QUANTITIES = ("output", "running_mean", "running_var", "grad_input", "grad_weight", "grad_bias")
KERNELS: dict[str, ModuleType] = {"native": native, "eager": eager}
if cpu.available:
    from batchnorm.ops.cpu import kernels

    KERNELS = {"cpu": kernels, **KERNELS}

# The floor under "twice torch's error", which can be zero by luck; twice as high, since these are the worst of draws.
FLOOR = {dtype: 2 * resolution for dtype, resolution in RESOLUTION.items()}


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _outlier(*shape: int) -> Tensor:
    x = _normal(*shape)
    x.view(-1)[torch.randint(x.numel(), ())] = 1e6
    return x


def _with(x: Tensor, value: float, every: int) -> Tensor:
    """That value in the place of the first of so many."""
    x.view(-1)[::every] = value
    return x


def _by_sample(x: Tensor, step: float) -> Tensor:
    """Each sample around a mean of its own, so much above the one before."""
    return x + step * torch.arange(len(x), dtype=x.dtype).view(-1, *[1] * (x.dim() - 1))


def _blocks(*values: float) -> Tensor:
    """Blocks of 2048 equal values, as long as those that the compiled kernels sum up."""
    plane = torch.tensor(values, dtype=torch.float64).repeat_interleave(2048)
    return plane.view(1, 1, -1, 64).expand(3, 4, -1, 64).contiguous()


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
    "constant channels of 3e38": lambda: torch.full((6, 4, 7, 7), 3e38, dtype=torch.float64),
    "all over ±3e38": lambda: 3e38 * (2 * torch.rand(8, 4, 7, 7, dtype=torch.float64) - 1),
    "one outlier of 1e30": lambda: _with(_normal(8, 4, 7, 7), 1e30, 8 * 4 * 49),
    "first value 1e10": lambda: _with(_normal(1, 8, 64, 64), 1e10, 4096),
    "values of 1e10 in the first rows": lambda: _with(_normal(8192, 40), 1e10, 8192 * 40 // 8),
    "1e10 among values of 2.5e6": lambda: _with(2.5e6 * _normal(8, 4, 64, 64).sign(), 1e10, 8 * 4096),
    "an outlier in each block": lambda: _with(_normal(4, 3, 64, 96), 1e6, 1024),
    "a mean of its own a sample": lambda: _by_sample(1e-2 * _normal(64, 8, 6, 6), 100.0),
    "sorted": lambda: (1e3 * _normal(3 * 40 * 40, 8)).sort(0)[0],
    "constant blocks": lambda: _blocks(1.0, 1e4, -0.1, 1e4),
    "constant blocks, far apart": lambda: _blocks(1e10, 1.0, 1e10, 1.1),
    "magnitudes of 1e-20 to 1e15": lambda: _normal(32, 8, 7, 7) * 10 ** torch.linspace(-20, 15, 32).view(-1, 1, 1, 1),
    "one sample": lambda: _normal(1, 8, 9, 9),
    "two values a channel": lambda: _normal(2, 64),
    "two values a channel, spatial": lambda: 100 + _normal(1, 24, 2, 1),
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


# What tells in double precision, where nothing is summed up in more than that.
DOUBLE = (
    "standard normal",
    "mean 1e4, std 1e-2",
    "mean 1e6, std 1e-1",
    "one outlier of 1e6",
    "a mean of its own a sample",
    "37 channels",
)

# Plain operations sum in float32, where these overflow.
BEYOND_EAGER = ("constant channels of 3e38", "all over ±3e38")


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
        gradients = torch.autograd.grad(output, (x, weight, bias), dy)
    else:
        identity, ours = Activation("identity"), KERNELS[kernel]
        with torch.no_grad():
            layer = (weight, bias, None, None)
            found = ours.train(x, *layer, mean, var, None, 1.0, False, EPS, identity, False)
            output, count, *statistics, _ = found
            kept = (*statistics, *layer, None, count)
            gradients = ours.backward(dy, x, *kept, EPS, identity, (True, True, True, False))[:3]
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
                if kernel == "eager" and name in BEYOND_EAGER:
                    continue
                for quantity, value in _run(kernel, x, dy, weight, bias).items():
                    key = (format, kernel, quantity)
                    off = np.abs(value.detach().double().numpy() - truth[quantity])
                    # A NaN is as wrong as can be: max() would pass over it.
                    error = float(np.nan_to_num(off, nan=np.inf, posinf=np.inf).max())
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
        "torch's, plus a few roundings. `cpu` is the compiled kernels, which serve everything on the CPU, `native`",
        "hands the arithmetic to torch's own kernels, `eager` is plain operations (higher derivatives; masks",
        "elsewhere). Where torch's channels-last kernel loses a small spread beside a large mean, `native` loses it",
        "too. Where float32",
        "cannot hold a variance (values beyond 1.8e19) all are at a loss, torch's included.",
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
    rows += [row for name in DOUBLE for row in measure(name, torch.float64)]
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
