"""Cases for compiled kernels, the CPU's and the GPU's: what goes in, on which device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from batchnorm import Activation
from contract import FORMATS

OPS = torch.ops.batchnorm
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# Parameters that are nobody's defaults; the second leaky_relu goes down on both sides of 0.
ACTIVATIONS: tuple[Activation, ...] = (
    Activation("identity"),
    Activation("relu"),
    Activation("leaky_relu", negative_slope=0.3),
    Activation("leaky_relu", negative_slope=-0.7),
    Activation("relu6"),
    Activation("hardtanh", min_val=-0.4, max_val=0.9),
    Activation("silu"),
    Activation("hardswish"),
    Activation("gelu"),
    Activation("gelu_tanh"),
    Activation("sigmoid"),
    Activation("tanh"),
    Activation("elu", alpha=1.7),
)


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


FORMATS_AND_EXPANDED: dict[str, Callable[[Tensor], Tensor]] = {**FORMATS, "expanded": _expanded}


def strided(vector: Tensor | None) -> Tensor | None:
    """The same vector with a gap after each value."""
    return None if vector is None else torch.stack([vector, torch.full_like(vector, 1e4)], -1)[..., 0]


@dataclass
class Case:
    """Everything that one layer's forward and backward pass takes."""

    input: Tensor
    grad_output: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    activation: Activation
    eps: float = 1e-5

    @property
    def described(self) -> tuple[float, str, list[float]]:
        return self.eps, self.activation.name, list(self.activation.parameters)

    def forward(self, keep_bits: bool = False) -> tuple[Tensor, ...]:
        tensors = (self.input, self.weight, self.bias, self.residual, self.mask)
        return OPS.forward(*tensors, *self.described, keep_bits)

    def layer(self, mean: Tensor, var: Tensor, residual: bool = True) -> tuple[Tensor | None, ...]:
        """From the input on, as the operators that are given statistics take it."""
        return self.input, mean, var, self.weight, self.bias, self.residual if residual else None, self.mask


def draw(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    format: str = "contiguous",
    grad_format: str | None = None,
    residual: str | None = None,
    affine: str = "both",
    mask: str | None = None,
    activation: Activation = ACTIVATIONS[0],
    seed: int = 0,
    device: str = "cpu",
) -> Case:
    """A case by its description: the formats of input, gradient and residual, and a mask by the name of its kind.

    Parameters are float32 for half-precision input; those of ``affine="own"`` have the input's dtype.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")

    def pick(values: tuple[float, ...]) -> Tensor:
        chosen = torch.randint(len(values), (shape[1],), generator=generator, device="cpu")
        return torch.tensor(values, dtype=torch.float64, device="cpu")[chosen].view(1, -1, *[1] * (len(shape) - 2))

    def there(values: Tensor, format: str) -> Tensor:
        return FORMATS_AND_EXPANDED[format](values.to(device, dtype))

    x = pick((0.0, 3.0, -50.0)) + pick((1.0, 0.1, 10.0)) * normal(*shape)
    parameters = dtype if affine == "own" or dtype == torch.float64 else torch.float32
    weight, bias = (normal(shape[1]).to(device, parameters) for _ in range(2))
    return Case(
        there(x, format),
        there(normal(*shape), grad_format or format),
        None if residual is None else there(normal(*shape), residual),
        {"both": weight, "own": weight, "weight": weight, "strided": strided(weight)}.get(affine),
        {"both": bias, "own": bias, "bias": bias, "strided": strided(bias)}.get(affine),
        None if mask is None else _mask(mask, (shape[0], *shape[2:]), generator).to(device),
        activation,
    )


AFFINE = ("both", "own", "weight", "bias", "none", "strided")
MASKS = ("random", "runs", "sample", "one", "all", "none")


def _mask(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool, device="cpu")
    if kind == "random":
        return torch.rand(shape, generator=generator, device="cpu") < 0.6
    if kind == "runs":  # as padded sequences have them: valid up to a length of its own
        rows = mask.view(shape[0], -1)
        lengths = torch.randint(rows.shape[1] + 1, (shape[0], 1), generator=generator, device="cpu")
        return (torch.arange(rows.shape[1], device="cpu") < lengths).view(shape)
    if kind == "sample":
        mask[0] = False
    elif kind == "one":
        mask[:] = False
        mask.view(-1)[mask.numel() // 2] = True
    elif kind == "none":
        mask[:] = False
    return mask


@st.composite
def descriptions(
    draw_from: st.DrawFn,
    spatial: list[tuple[int, ...]],
    channels: int = 70,
    samples: int = 70,
    most: int = 20_000,
) -> tuple[Any, ...]:
    """What :func:`draw` takes, of so many values at most: short enough to read where an example fails."""
    channels = draw_from(st.integers(1, channels))
    size = draw_from(st.sampled_from(spatial))
    samples = draw_from(st.integers(1, max(1, min(samples, most // (channels * math.prod(size))))))
    formats = st.sampled_from(list(FORMATS_AND_EXPANDED))
    return (
        (samples, channels, *size),
        draw_from(st.sampled_from(DTYPES)),
        draw_from(formats),
        draw_from(formats),
        draw_from(st.none() | formats),
        draw_from(st.sampled_from(AFFINE)),
        draw_from(st.none() | st.sampled_from(MASKS)),
        draw_from(st.sampled_from(ACTIVATIONS)),
        draw_from(st.integers(0, 2**20)),
    )
