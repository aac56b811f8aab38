"""One of the processes of ``test_recalibrate_ranks.py``: ``python recalibrate_ranks.py RANK SIZE FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import batchnorm
from batchnorm import accumulate_statistics, adapt, recalibrate

SIZES = {"uneven": [11, 3], "empty": [0, 9], "all empty": [0, 0]}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), batchnorm.BatchNorm1d(2)).double()
    made(torch.randn(5, 3).double())
    return made


def data(case: str, rank: int) -> Tensor:
    return torch.randn(SIZES[case][rank], 3, generator=torch.Generator().manual_seed(rank)).double() + rank


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def batches(case: str, rank: int) -> list[Tensor]:
    return [part for part in data(case, rank).split(2) if len(part)]


def done(work: Callable[[nn.Module], Any], made: nn.Module | None = None) -> dict[str, Any]:
    """The statistics before and after, and the error."""
    made = made or model()
    before, error, named = state(made), "", ()
    try:
        work(made)
    except Exception as raised:
        error, named = f"{type(raised).__name__}: {raised}", getattr(raised, "ranks", ())
    return {"before": before, "after": state(made), "error": error, "ranks": named, "training": made.training}


def main(rank: int, size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    alone = [dist.new_group([each]) for each in range(size)][rank]

    def fails(kind: type[BaseException], at: int) -> Callable[[nn.Module, Tensor], None]:
        seen = 0

        def forward(made: nn.Module, batch: Tensor) -> None:
            nonlocal seen
            seen += 1
            if rank == 1 and seen == at:
                raise kind("the disk is full")
            made(batch)

        return forward

    def together(made: nn.Module) -> None:
        norm = batchnorm.SyncBatchNorm(3, momentum=1.0).double()
        made.add_module("sync", norm)
        with accumulate_statistics(norm):
            for part in data("uneven", rank).tensor_split(3):
                norm(part)

    orders = ("one-pass", "layer-by-layer")
    found = {
        f"{case}, {order}": done(
            lambda made, case=case, order=order: recalibrate(made, batches(case, rank), order=order)
        )
        for case in SIZES
        for order in orders
    }
    for order in orders:
        for at in (1, 2):
            found[f"fails {at}, {order}"] = done(
                lambda made, order=order, at=at: recalibrate(
                    made, batches("uneven", rank), order=order, forward=fails(ValueError, at)
                )
            )
    found |= {
        "adapt": done(lambda made: adapt(made, batches("uneven", rank), prior=14)),
        "alone": done(lambda made: recalibrate(made, batches("uneven", rank), process_group=alone)),
        "argument": done(lambda made: recalibrate(made, batches("uneven", rank), max_samples=-rank or None)),
        "short": done(lambda made: recalibrate(made, batches("uneven", rank), max_samples=5)),
        "others": done(
            lambda made: recalibrate(made, batches("uneven", rank)), nn.Sequential(nn.BatchNorm1d(3)) if rank else None
        ),
        "wrapped": done(lambda made: recalibrate(nn.parallel.DistributedDataParallel(made), batches("uneven", rank))),
        "accumulated": done(together),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
