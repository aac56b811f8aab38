"""Run as ``monitored_ranks.py RANK SIZE FOLDER``: a model under DistributedDataParallel, with and without monitors."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import batchnorm


def trained(rank: int, compiled: bool, all_ranks: bool | None) -> tuple[list[torch.Tensor], list[list[str]]]:
    """Parameters after three steps, and the layers of each record."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 1), batchnorm.SyncBatchNorm(4), nn.ReLU(), nn.BatchNorm2d(4))
    model: nn.Module = DistributedDataParallel(net)
    if compiled:
        model = torch.compile(model, backend="eager")
    records: list[list[str]] = []
    handle = None
    if all_ranks is not None:
        handle = batchnorm.monitor(model, lambda r: records.append(list(r.layers)), every=2, all_ranks=all_ranks)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for number in range(3):
        optimizer.zero_grad()
        x = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(10 * number + rank))
        model(x).square().mean().backward()
        optimizer.step()
    if handle is not None:
        handle.close()
    return [parameter.detach() for parameter in net.parameters()], records


def main(rank: int, size: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    cases = [(compiled, all_ranks) for compiled in (False, True) for all_ranks in (None, False, True)]
    torch.save({f"{case}": trained(rank, *case) for case in cases}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
