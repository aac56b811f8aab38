"""A batch as a whole and in the parts that ranks have of it; the truth for both."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import batchnorm
from batchnorm import reference
from contract import FORMATS, reference_activation
from tolerance import assert_three_way, double

CHANNELS = 5


@dataclass
class Whole:
    """One batch, the layer's arguments, and which samples each rank has."""

    input: Tensor
    residual: Tensor | None
    mask: Tensor | None
    grad_output: Tensor
    arguments: dict[str, Any]
    parts: list[slice]
    format: str

    def layer(self, cls: Any = batchnorm.SyncBatchNorm, **others: Any) -> torch.nn.Module:
        half = self.input.dtype in (torch.bfloat16, torch.float16)
        dtype = torch.float32 if half else self.input.dtype
        layer = cls(self.input.shape[1], dtype=dtype, **self.arguments, **others)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in (*layer.parameters(), layer.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        return layer

    def run(self, layer: torch.nn.Module, rank: int | None) -> dict[str, Tensor]:
        """Output and gradients of the rank's part; of everything for None."""
        part = slice(None) if rank is None else self.parts[rank]
        to_format = FORMATS[self.format]

        def own(x: Tensor) -> Tensor:
            return to_format(x[part]).detach().requires_grad_()

        inputs = {"input": own(self.input), **dict(layer.named_parameters())}
        if self.residual is not None:
            inputs["residual"] = own(self.residual)
        mask = None if self.mask is None else self.mask[part]
        output = layer(inputs["input"], inputs.get("residual"), mask)
        assert rank is None or output.stride() == torch.empty_like(inputs["input"]).stride()
        found = torch.autograd.grad(output, list(inputs.values()), self.grad_output[part])
        return {"output": output.detach(), **dict(zip(inputs, found, strict=True))}

    def reference(self, layer: torch.nn.Module) -> dict[str, np.ndarray]:
        """The same by the float64 reference, and the buffers afterwards; ``layer`` as it was before."""
        mask = None if self.mask is None else self.mask.numpy()
        x = double(self.input)
        output, saved = reference.forward(
            x,
            weight=None if layer.weight is None else double(layer.weight),
            bias=None if layer.bias is None else double(layer.bias),
            residual=None if self.residual is None else double(self.residual),
            mask=mask,
            activation=reference_activation(layer.activation.name),
            eps=layer.eps,
        )
        found = reference.backward(double(self.grad_output), saved)
        momentum = layer.momentum or reference.cumulative_momentum(1)
        before = double(layer.running_mean), double(layer.running_var)
        mean, var = reference.update_running(*before, reference.moments(x, mask), momentum)
        truth = {"output": output, "input": found.x, "weight": found.weight, "bias": found.bias}
        return {**truth, "residual": found.residual, "running_mean": mean, "running_var": var}


def split(samples: int, ranks: int, draw: random.Random) -> list[slice]:
    """Consecutive samples for each rank; any of them may have none."""
    cuts = sorted(draw.randint(0, samples) for _ in range(ranks - 1))
    return [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, samples], strict=True)]


def random_whole(seed: int, ranks: int) -> Whole:
    """The same on every rank that asks with the same seed."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    spatial = draw.choice([(), (7,), (3, 4), (1, 1), (2, 3, 2)])
    shape = (draw.choice([2, 5, 8, 16]), CHANNELS, *spatial)
    dtype = draw.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])

    def values() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = values() * draw.choice([1.0, 3.0]) + draw.choice([0.0, 5.0])
    x = x + torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)) * draw.choice([0.0, 0.5])  # ranks differ in mean
    arguments: dict[str, Any] = {
        "activation": draw.choice([None, "relu", *batchnorm.activation.ACTIVATIONS]),
        "momentum": draw.choice([0.1, None]),
        "affine": draw.random() < 0.8,
    }
    if arguments["affine"]:
        arguments["bias"] = draw.random() < 0.8
    residual = draw.random() < 0.5
    half = dtype in (torch.bfloat16, torch.float16)
    if residual and half and arguments["activation"] in ("leaky_relu", "relu6", "hardtanh"):
        # As in evaluation the bits are read off the output: rounded to half precision it may lie on a kink that z is
        # not on. And the slope of leaky_relu is applied in half precision, which float32 sums show.
        dtype = torch.float32
    masked = draw.random() < 0.3
    return Whole(
        x.to(dtype),
        values().to(dtype) if residual else None,
        torch.rand((shape[0], *spatial), generator=generator) < 0.7 if masked else None,
        values().to(dtype),
        arguments,
        split(shape[0], ranks, draw),
        draw.choice(list(FORMATS)),
    )


def total(tensor: Tensor) -> Tensor:
    """The sum over ranks."""
    summed = tensor.double()
    dist.all_reduce(summed)
    return summed.to(tensor.dtype)


def assert_alike(what: str, tensor: Tensor) -> None:
    """The same bits on every rank."""
    everywhere = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, tensor)
    for other in everywhere:
        assert torch.equal(tensor.nan_to_num(7.0), other.nan_to_num(7.0)), f"{what} differs between ranks: {everywhere}"


def assert_as_whole(name: str, whole: Whole, layer: torch.nn.Module | None = None) -> None:
    """The ranks together compute what one process computes of the whole batch."""
    rank = dist.get_rank()
    synced, plain = layer or whole.layer(), whole.layer()
    plain._batch_norm = batchnorm.functional.batch_norm
    truth = whole.reference(plain)
    ours, theirs = whole.run(synced, rank), whole.run(plain, None)
    part = whole.parts[rank]
    assert torch.empty_like(whole.input[part]).shape == ours["output"].shape
    # What a rounding of the mean or of one rank's sum comes to, where results cancel, as they do for few values.
    moments = reference.moments(double(whole.input), None if whole.mask is None else whole.mask.numpy())
    weight = 1.0 if plain.weight is None else np.abs(double(plain.weight))
    scale = float(np.max(weight / np.sqrt(moments.variance + plain.eps)))
    spreads = {
        "output": scale * float(whole.input.abs().max()),
        "input": scale * float(whole.grad_output.abs().max()),
        "residual": 0.0,
    }
    for key, value in ours.items():
        what = f"{name}: {key}"
        if key in spreads:
            assert_three_way(what, value, theirs[key][part], truth[key][part], spreads[key])
        else:
            assert_three_way(what, total(value), theirs[key], truth[key], float(total(value.abs()).max()))
    for key, buffer in synced.named_buffers():
        assert_alike(f"{name}: {key}", buffer)
        wanted = plain.get_buffer(key)
        if key == "num_batches_tracked":
            assert torch.equal(buffer, wanted), f"{name}: {key} is {buffer}, not {wanted}"
        else:
            assert_three_way(f"{name}: {key}", buffer, wanted, truth[key], spread=float(whole.input.abs().max()))
