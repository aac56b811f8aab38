"""What ``SyncBatchNorm`` does over a process group on a device: with one rank, and with several."""

from __future__ import annotations

import copy
import itertools
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import batchnorm
from batchnorm import functional
from batchnorm.ops import synced

CHANNELS = 5
TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.bfloat16: {"rtol": 2e-2, "atol": 5e-2},
}


def _run(norm: Any, given: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Output, gradients and buffers of one call of a function."""
    given = {name: each.detach().clone() for name, each in given.items()}
    leaves = {name: each.requires_grad_() for name, each in given.items() if name in _DIFFERENTIABLE}
    output = norm(given.pop("input"), given.pop("mean"), given.pop("var"), training=True, **given, **arguments)
    found = torch.autograd.grad(output.float().pow(3).sum(), list(leaves.values()))
    return {"output": output, **dict(zip(leaves, found, strict=True))}


_DIFFERENTIABLE = ("input", "weight", "bias", "residual")


def world_of_one(device: str) -> None:
    """Over a group of one rank, both collectives included, what the plain norm computes. The road is forced."""
    layouts = {
        "channels-last": torch.randn(6, CHANNELS, 3, 4).to(memory_format=torch.channels_last),
        "planes": torch.randn(6, CHANNELS, 3, 4),
        "rows": torch.randn(30, CHANNELS),
        "empty": torch.randn(0, CHANNELS, 3, 4),
    }
    settings = (
        (torch.float32, False, 0.1),
        (torch.float32, True, None),
        (torch.float64, False, None),
        (torch.bfloat16, True, 0.1),
    )
    gathered = []
    all_gather = synced._all_gather

    def seen(part: Tensor, ranks: int, group: str) -> Tensor:
        gathered.append(part.device.type)
        return all_gather(part, ranks, group)

    calls = 0
    for (layout, values), (dtype, masked, momentum), activation in itertools.product(
        layouts.items(), settings, (None, "relu", "silu")
    ):
        x = (values * 2 + 3).to(device, dtype)
        statistics = torch.float64 if dtype == torch.float64 else torch.float32
        given = {
            "input": x,
            "weight": torch.randn(CHANNELS).to(device, statistics),
            "bias": torch.randn(CHANNELS).to(device, statistics),
        }
        if activation is not None:
            given["residual"] = torch.randn_like(x)
        if masked:
            given["mask"] = (torch.rand(x.shape[0], *x.shape[2:]) < 0.7).to(device)
        found = []
        for norm in (functional.sync_batch_norm, functional.batch_norm):
            buffers = [torch.zeros(CHANNELS), torch.ones(CHANNELS), torch.tensor(0)]
            mean, var, seen_batches = (each.to(device) for each in buffers)
            arguments = {"activation": activation, "momentum": momentum, "num_batches_tracked": seen_batches}
            with patch.object(synced, "_all_gather", seen):
                results = _run(norm, {**given, "mean": mean, "var": var}, arguments)
            found.append({**results, "mean": mean, "var": var, "seen": seen_batches})
        calls += 1
        for name, value in found[0].items():
            wanted, tolerance = found[1][name], TOLERANCE[dtype]
            torch.testing.assert_close(
                value,
                wanted,
                **tolerance,
                msg=lambda m, n=f"{layout} {dtype} {activation} {masked} {name}": f"{n}: {m}",
            )
            assert value.stride() == wanted.stride()
    assert gathered == [device] * calls


def what_is_not_finite(device: str) -> None:
    """It moves no buffer."""
    layer = batchnorm.SyncBatchNorm(CHANNELS, device=device)
    x = torch.randn(4, CHANNELS, 3).to(device)
    x[0, 1] = torch.nan
    output = layer(x)
    assert output[:, 1].isnan().all()
    assert output[:, 0].isfinite().all()
    assert int(layer.num_batches_tracked) == 0
    assert float(layer.running_mean.abs().max()) == 0.0


def part_of_the_whole(device: str) -> None:
    """Ranks with parts of different sizes, and one that may have none, against one process with the whole batch."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for cuts, momentum, activation in itertools.product(([5, 3], [8, 0]), (0.1, None), ("relu", "gelu")):
        generator = torch.Generator().manual_seed(1)
        whole, residual, upstream = torch.randn(3, 8, CHANNELS, 3, 4, generator=generator).unbind()
        mask = torch.rand(8, 3, 4, generator=generator) < 0.8
        plain = batchnorm.BatchNormAct2d(CHANNELS, momentum=momentum, activation=activation).to(device)
        layer = batchnorm.SyncBatchNorm(CHANNELS, momentum=momentum, activation=activation).to(device)
        own = slice(sum(cuts[:rank]), sum(cuts[: rank + 1]))
        results = []
        for norm, part in ((layer, own), (plain, slice(None))):
            given = [each[part].to(device).requires_grad_() for each in (whole + 5, residual)]
            output = norm(*given, mask[part].to(device))
            found = torch.autograd.grad(output, [*given, *norm.parameters()], upstream[part].to(device))
            results.append((output, *found))
        ours, theirs = results
        for found, wanted in zip(ours[:3], theirs[:3], strict=True):
            torch.testing.assert_close(found, wanted[own], rtol=1e-4, atol=1e-5)
        for found, wanted in zip(ours[3:], theirs[3:], strict=True):
            total = found.cpu()
            dist.all_reduce(total)
            torch.testing.assert_close(total, wanted.cpu(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(dict(layer.named_buffers()), dict(plain.named_buffers()), rtol=1e-5, atol=1e-5)
        everywhere = [torch.empty(CHANNELS) for _ in range(size)]
        dist.all_gather(everywhere, layer.running_var.cpu())
        assert all(torch.equal(each, everywhere[0]) for each in everywhere)


def distributed_data_parallel(device: str) -> None:
    """A model in DDP, which is given its device, trained on parts as one process trains it on the whole."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, CHANNELS), batchnorm.BatchNormAct1d(CHANNELS), torch.nn.Linear(CHANNELS, 2)
    ).to(device)
    parts = batchnorm.convert(copy.deepcopy(model), "sync")
    wrapped = DistributedDataParallel(parts, device_ids=[torch.device(device, 0)] if device == "cuda" else None)
    batches = torch.randn(3, 4 * size, 6).to(device)
    for network, own in ((model, slice(None)), (wrapped, slice(4 * rank, 4 * rank + 4))):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for batch in batches:
            optimizer.zero_grad()
            network(batch[own]).pow(2).mean().backward()
            optimizer.step()
    torch.testing.assert_close(dict(parts.state_dict()), dict(model.state_dict()), rtol=1e-4, atol=1e-5)


def recalibrated(device: str) -> None:
    """Ranks with a batch each."""
    rank, size = dist.get_rank(), dist.get_world_size()
    batches = list(torch.randn(size, 40, CHANNELS, generator=torch.Generator().manual_seed(2)) + 3)
    layers = [torch.nn.Sequential(batchnorm.BatchNorm1d(CHANNELS)).to(device) for _ in range(2)]
    batchnorm.recalibrate(layers[0], [batches[rank]])
    plain = torch.cat(batches)
    torch.testing.assert_close(layers[0][0].running_mean.cpu(), plain.mean(0))
    torch.testing.assert_close(layers[0][0].running_var.cpu(), plain.var(0))
    layers[1][0].running_mean.fill_(rank)
    layers[1][0].num_batches_tracked.fill_(1)
    batchnorm.synchronize(layers[1])
    assert float(layers[1][0].running_mean[0]) == (size - 1) / 2


WITH_ONE_RANK = (world_of_one, what_is_not_finite)
WITH_SEVERAL_RANKS = (part_of_the_whole, distributed_data_parallel, recalibrated, what_is_not_finite)
