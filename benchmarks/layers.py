"""What the other norms cost beside the plain one: ``benchmarks/layers.csv``, and tables in the docs.

``python benchmarks/layers.py`` measures everything, forward and backward, and writes the tables of ``docs/layers.md``,
``docs/sync.md`` and ``docs/accumulate.md``; names of tables measure only those, ``--draw`` none. Every figure is a
ratio of medians of interleaved rounds. What is timed has to give the right output first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import result_tables as tables
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce

import batchnorm
from batchnorm.bench.timing import interleave, ratio

HERE = Path(__file__).parent
CSV = HERE / "layers.csv"
DOCS = HERE.parent / "docs"
PAGES = {
    DOCS / "layers.md": ("layers", "ghost"),
    DOCS / "sync.md": ("sync",),
    DOCS / "accumulate.md": ("accumulate",),
}
ROUNDS = 25
FORMATS = {"": torch.contiguous_format, ", channels-last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Parts(nn.Module):
    """The plain layer on each part of the batch, joined again: what a ghost batch norm is without one."""

    def __init__(self, norm: nn.Module, size: int) -> None:
        super().__init__()
        self.norm, self.size = norm, size

    def forward(self, input: Tensor) -> Tensor:
        """Parts of ``size`` samples."""
        return torch.cat([self.norm(part) for part in input.split(self.size)])


class View(nn.Module):
    """Parts of interleaved samples as further channels of one call of torch's kernel; contiguous input alone."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        """As :class:`Parts`, of other samples."""
        joined = input.view(-1, input.shape[1] * self.parts, *input.shape[2:])
        weight, bias = self.weight.repeat(self.parts), self.bias.repeat(self.parts)
        return torch.nn.functional.batch_norm(joined, None, None, weight, bias, True).view(input.shape)


class ByHand(nn.Module):
    """A synchronised norm as it is written by hand: E[x²] − E[x]² through a differentiable all-reduce."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        """Norm and ReLU."""
        dims, channels = [0, *range(2, input.dim())], input.shape[1]
        count = input.new_full((1,), input.numel() / channels)
        sums = all_reduce(torch.cat((input.sum(dims), (input * input).sum(dims), count)), "sum", dist.group.WORLD)
        mean, square = sums[:channels] / sums[-1], sums[channels:-1] / sums[-1]

        def wide(vector: Tensor) -> Tensor:
            return vector.view(1, -1, *[1] * (input.dim() - 2))

        scale = torch.rsqrt(wide(square - mean * mean) + 1e-5) * wide(self.weight)
        return torch.relu((input - wide(mean)) * scale + wide(self.bias))


def step(layer: nn.Module, input: Tensor, grad_output: Tensor) -> Callable[[], Tensor]:
    """Forward and backward."""

    def run() -> Tensor:
        input.grad = None
        output: Tensor = layer(input)
        output.backward(grad_output)
        return output

    return run


def data(shape: tuple[int, ...], dtype: str = "float32", layout: str = "") -> tuple[Tensor, Tensor]:
    """Input and gradient."""
    generator = torch.Generator().manual_seed(0)
    format = FORMATS[layout] if len(shape) == 4 else torch.contiguous_format
    x, dy = (torch.randn(shape, generator=generator).to(DTYPES[dtype]).contiguous(memory_format=format) for _ in "xy")
    return x.requires_grad_(), dy


def agree(one: Tensor, other: Tensor) -> None:
    """No time for a wrong result."""
    bound = 1e-4 if one.dtype == torch.float32 else 5e-2
    torch.testing.assert_close(one, other, rtol=bound, atol=bound)


def dimension(shape: tuple[int, ...]) -> int:
    """The spatial dimensions that the layer's class is named by."""
    return max(len(shape) - 2, 1)


GHOST = [
    ((256, 64, 32, 32), 32),
    ((256, 64, 8, 8), 32),
    ((128, 256, 14, 14), 16),
    ((32, 64, 56, 56), 4),
    ((4096, 256), 128),
    ((1024, 512), 64),
]


def ghost() -> list[dict[str, Any]]:
    """The other way's time over that of ``GhostBatchNorm*``."""
    rows = []
    for shape, size in GHOST:
        for dtype in DTYPES:
            for layout in FORMATS if len(shape) == 4 else [""]:
                input, grad_output = data(shape, dtype, layout)
                kind, channels = dimension(shape), shape[1]
                layers: dict[str, nn.Module] = {
                    "ghost": getattr(batchnorm, f"GhostBatchNorm{kind}d")(channels, ghost_size=size),
                    "plain `BatchNorm`": getattr(batchnorm, f"BatchNorm{kind}d")(channels),
                    "plain on each part, `torch.cat`": Parts(getattr(batchnorm, f"BatchNorm{kind}d")(channels), size),
                }
                if not layout:
                    layers["`view` to (N/p, C·p), torch's kernel"] = View(channels, shape[0] // size)
                runs = {name: step(layer, input, grad_output) for name, layer in layers.items()}
                agree(runs["ghost"](), runs["plain on each part, `torch.cat`"]())
                case = f"{'×'.join(map(str, shape))} by {size}, {dtype}{layout}"
                rows += _over("ghost", case, runs, "ghost")
    return rows


LAYERS = [(64, 64, 56, 56), (32, 256, 14, 14), (8, 512, 7, 7), (4096, 256), (64, 16)]


def layers() -> list[dict[str, Any]]:
    """Each layer's time over the plain one's."""
    rows = []
    for shape in LAYERS:
        input, grad_output = data(shape)
        kind, channels = dimension(shape), shape[1]
        built = {
            name: getattr(batchnorm, f"{name}{kind}d")(channels)
            for name in ("BatchNorm", "FrozenBatchNorm", "DomainBatchNorm")
        }
        built["BatchRenorm"] = getattr(batchnorm, f"BatchRenorm{kind}d")(channels, warmup=0)
        built["SyncBatchNorm, alone"] = batchnorm.SyncBatchNorm(channels)
        runs = {f"`{name}`": step(layer, input, grad_output) for name, layer in built.items()}
        agree(runs["`DomainBatchNorm`"](), runs["`BatchNorm`"]())
        agree(runs["`SyncBatchNorm, alone`"](), runs["`BatchNorm`"]())
        rows += _over("layers", "×".join(map(str, shape)), runs, "`BatchNorm`")
    return rows


def _over(table: str, case: str, runs: dict[str, Callable[[], Tensor]], base: str) -> list[dict[str, Any]]:
    calls = 1 if table == "ghost" else 3
    samples = interleave(runs, ROUNDS, repeat=dict.fromkeys(runs, calls))
    rows = []
    for name in runs:
        if name != base:
            found = ratio(samples[name].seconds, samples[base].seconds)
            text = f"{found.estimate:.2f} [{found.low:.2f} {found.high:.2f}]"
            rows.append(tables.row(table, case, name, found.estimate, text))
    return rows


ACCUMULATED = [(8, 16, 4, 4), (8, 64, 28, 28)]
CALLS = 8


def accumulate() -> list[dict[str, Any]]:
    """A step of eight forward passes within ``accumulate_statistics``, its ends included, over one without."""
    rows = []
    for shape in ACCUMULATED:
        input = data(shape)[0].detach()
        for library in (torch.nn, batchnorm):
            norm = library.BatchNorm2d(shape[1])

            def plain(norm: nn.Module = norm, input: Tensor = input) -> Tensor:
                for _ in range(CALLS):
                    output: Tensor = norm(input)
                return output

            def accumulated(norm: nn.Module = norm, run: Callable[[], Tensor] = plain) -> Tensor:
                with batchnorm.accumulate_statistics(norm):
                    return run()

            agree(accumulated(), plain())
            case, name = "×".join(map(str, shape)), f"`{library.__name__}.BatchNorm2d`"
            rows += _over("accumulate", case, {"plain": plain, name: accumulated}, "plain")
    return rows


SYNC = [(16, 64, 56, 56), (16, 256, 14, 14), (8, 512, 7, 7), (64, 64), (2, 8)]


def sync() -> list[dict[str, Any]]:
    """Times over that of the plain layer in each of two processes, of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (folder,), nprocs=2)
        return torch.load(f"{folder}/rows.pt", weights_only=False)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows: list[dict[str, Any]] = []
    for shape in SYNC:
        input, grad_output = data(shape)
        channels = shape[1]
        built = {
            "plain": getattr(batchnorm, f"BatchNormAct{dimension(shape)}d")(channels),
            "`SyncBatchNorm`": batchnorm.SyncBatchNorm(channels, activation="relu"),
            "by hand": ByHand(channels),
        }
        runs: dict[str, Callable[[], object]] = {name: step(layer, input, grad_output) for name, layer in built.items()}
        agree(runs["`SyncBatchNorm`"](), runs["by hand"]())  # type: ignore[arg-type]
        runs["the two collectives alone"] = _collectives(channels)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(-2, ROUNDS):
            for name, run in runs.items():
                dist.barrier()
                start = time.perf_counter()
                run()
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - start)
        for name in ("`SyncBatchNorm`", "the two collectives alone", "by hand"):
            found = ratio(seconds[name], seconds["plain"])
            text = f"{found.estimate:.1f} [{found.low:.1f} {found.high:.1f}]"
            rows.append(tables.row("sync", "×".join(map(str, shape)), name, found.estimate, text))
    if rank == 0:
        torch.save(rows, f"{folder}/rows.pt")
    dist.barrier()
    dist.destroy_process_group()


def _collectives(channels: int) -> Callable[[], object]:
    operators, group = torch.ops._c10d_functional, dist.group.WORLD.group_name
    moments = torch.zeros(2 * channels + 2, dtype=torch.float64)
    sums = torch.zeros(2 * channels, dtype=torch.float64)

    def run() -> None:
        operators.wait_tensor(operators.all_gather_into_tensor(moments, 2, group))
        operators.wait_tensor(operators.all_reduce(sums, "sum", group))

    return run


MEASURES = {"layers": layers, "ghost": ghost, "accumulate": accumulate, "sync": sync}


def draw() -> None:
    """The tables, from the rows on disk."""
    rows = tables.read(CSV)
    for path, names in PAGES.items():
        path.write_text(tables.page(path.read_text(encoding="utf-8"), rows, names), encoding="utf-8")


def main() -> None:
    """Measures, and writes the file and the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", choices=[*MEASURES, []], help="which to measure; all, if none is named")
    parser.add_argument("--draw", action="store_true", help="only write the tables")
    given = parser.parse_args()
    if not given.draw:
        chosen = given.tables or list(MEASURES)
        kept = [row for row in tables.read(CSV) if row["table"] not in chosen] if CSV.exists() else []
        measured = [row for name in chosen for row in MEASURES[name]()]
        tables.write(CSV, [*kept, *measured])
    draw()
    print(CSV, *PAGES, sep="\n", file=sys.stdout)


if __name__ == "__main__":
    main()
