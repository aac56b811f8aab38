"""One of the processes of ``test_synchronize.py``: ``python synchronize_ranks.py RANK SIZE FOLDER``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import batchnorm
from batchnorm.population import freeze, synchronize

SEEN = [5, 2, 9]  # batches


def model(rank: int, momentum: float | None = 0.1, seen: int | None = None) -> nn.Sequential:
    """Norms with statistics of the rank's own, far apart beside their spread."""
    generator = torch.Generator().manual_seed(rank)
    made = nn.Sequential(nn.BatchNorm1d(3, momentum=momentum), nn.Sequential(batchnorm.BatchNorm2d(2)).double())
    for norm in (made[0], made[1][0]):
        norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) + 100 * rank)
        norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
        norm.num_batches_tracked.fill_(SEEN[rank] if seen is None else seen)
    return made


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    # Not by state_dict, which computes norms that wait.
    return {
        f"{path}.{name}": buffer.clone()
        for path, each in module.named_modules()
        for name, buffer in each._buffers.items()
        if buffer is not None
    }


def merged(module: nn.Module, *arguments: Any) -> dict[str, Any]:
    """The buffers before and after, and what was raised."""
    before, error = state(module), ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            synchronize(module, *arguments)
        except RuntimeError as raised:
            error = f"{type(raised).__name__}: {raised}"
    return {
        "before": before,
        "after": state(module),
        "error": error,
        "warned": "".join(str(each.message) for each in warned),
    }


def poisoned(rank: int) -> nn.Sequential:
    made = model(rank)
    if rank == 1:
        made[1][0].running_var[1] = float("nan")
    return made


def failing(rank: int) -> nn.Sequential:
    made = nn.Sequential(batchnorm.FusingBatchNorm1d(3))
    if rank == 1:
        x = torch.randn(4, 3)
        made.kept = made(x)  # type: ignore[assignment]
        x.zero_()  # the norm that waits is computed when synchronize looks at its statistics, and raises
    return made


def frozen(rank: int) -> nn.Sequential:
    made = model(rank)
    freeze(made, where=lambda path, layer: path == "0")
    return made


def wrapped(rank: int, kind: str) -> nn.Module:
    """In evaluation mode, but for the flag of what it is wrapped in."""
    made = model(rank).eval()
    made.append(nn.Conv2d(2, 2, 1).eval())
    if kind == "parallel":
        return nn.parallel.DistributedDataParallel(made, broadcast_buffers=False)
    if kind == "averaged":
        return torch.optim.swa_utils.AveragedModel(made)
    return torch.compile(made) if kind == "compiled" else nn.Sequential(made)


WRAPPERS = ("parallel", "averaged", "compiled", "module")


def all_frozen(rank: int) -> nn.Sequential:
    made = model(rank)
    freeze(made)
    return made


def domains(rank: int) -> nn.Sequential:
    layer = batchnorm.DomainBatchNorm1d(3)
    for name, own in layer.statistics.items():
        own.running_mean.fill_(rank + 10.0 * (name == "target"))
        own.num_batches_tracked.fill_(1)
    return nn.Sequential(layer)


def trained(rank: int, size: int) -> nn.Sequential:
    """One batch of 4096 a rank, of another mean."""
    made = nn.Sequential(nn.BatchNorm1d(3, momentum=None))
    made(data(rank))
    return made


def data(rank: int) -> torch.Tensor:
    return torch.randn(4096, 3, generator=torch.Generator().manual_seed(rank)) + 2 * rank


def main(rank: int, size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    two = dist.new_group([0, 1])
    twice = model(rank)
    synchronize(twice)
    found = {
        "momentum": merged(model(rank)),
        "average": merged(model(rank, momentum=None)),
        "two": merged(model(rank), two),
        "twice": merged(twice),
        "idle": merged(model(rank, seen=0 if rank == 0 else None)),
        "idle average": merged(model(rank, momentum=None, seen=0 if rank == 0 else None)),
        "no batch": merged(model(rank, seen=0)),
        "others": merged(nn.Sequential(nn.BatchNorm1d(3)) if rank == 1 else model(rank)),
        "not finite": merged(poisoned(rank)),
        "failing": merged(failing(rank)),
        "frozen": merged(frozen(rank)),
        "all frozen": merged(all_frozen(rank)),
        "evaluating": merged(nn.Sequential(model(rank).eval(), nn.Linear(2, 2))),
        **{kind: merged(wrapped(rank, kind)) for kind in WRAPPERS},
        "domains": merged(domains(rank)),
        "trained": merged(trained(rank, size)),
        "without norms": merged(nn.Linear(2, 2)),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
