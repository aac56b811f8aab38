"""Cases for the compiled kernels: what goes in, for whom, and in how many threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from batchnorm import Activation
from batchnorm.ops import cpu
from contract import FORMATS

OPS = torch.ops.batchnorm

if cpu.available:
    from batchnorm.ops.cpu import _kernels

    SETS: tuple[str, ...] = _kernels.instruction_sets()
else:
    SETS = ()


@contextmanager
def computing(instruction_set: str) -> Iterator[None]:
    """Have this instruction set compute in here."""
    before = _kernels.instruction_set()
    _kernels.use(instruction_set)
    try:
        yield
    finally:
        _kernels.use(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch compute in this many threads in here."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    return None if vector is None else torch.stack([vector, torch.full_like(vector, 1e6)], -1)[..., 0]


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
) -> Case:
    """A case by its description: the formats of input, gradient and residual, and a mask by the name of its kind."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def pick(values: tuple[float, ...]) -> Tensor:
        chosen = torch.randint(len(values), (shape[1],), generator=generator)
        return torch.tensor(values, dtype=torch.float64)[chosen].view(1, -1, *[1] * (len(shape) - 2))

    x = pick((0.0, 3.0, -50.0)) + pick((1.0, 0.1, 10.0)) * normal(*shape)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (normal(shape[1]).to(parameters) for _ in range(2))
    return Case(
        FORMATS_AND_EXPANDED[format](x.to(dtype)),
        FORMATS_AND_EXPANDED[grad_format or format](normal(*shape).to(dtype)),
        None if residual is None else FORMATS_AND_EXPANDED[residual](normal(*shape).to(dtype)),
        {"both": weight, "weight": weight, "strided": strided(weight)}.get(affine),
        {"both": bias, "bias": bias, "strided": strided(bias)}.get(affine),
        None if mask is None else _mask(mask, (shape[0], *shape[2:]), generator),
        activation,
    )


MASKS = ("random", "runs", "sample", "one", "all", "none")


def _mask(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    if kind == "random":
        return torch.rand(shape, generator=generator) < 0.6
    if kind == "runs":  # as padded sequences have them: valid up to a length of its own
        rows = mask.view(shape[0], -1)
        lengths = torch.randint(rows.shape[1] + 1, (shape[0], 1), generator=generator)
        return (torch.arange(rows.shape[1]) < lengths).view(shape)
    if kind == "sample":
        mask[0] = False
    elif kind == "one":
        mask[:] = False
        mask.view(-1)[mask.numel() // 2] = True
    elif kind == "none":
        mask[:] = False
    return mask
