"""A batch in parts: one node whose kernels compute what they compute for each part alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from batchnorm import Activation, reference
from batchnorm.functional import batch_norm, ghost_batch_norm
from batchnorm.ops import cpu
from batchnorm.ops.ghost import part_sizes
from contract import FORMATS
from ops.cpu_sets import SETS, computing, threads

needs_kernels = pytest.mark.skipif(not cpu.available, reason=cpu.reason)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(samples=st.integers(0, 70), spatial=st.sampled_from([(), (1,), (2, 2)]), ghost_size=st.integers(1, 80))
def test_a_batch_is_cut_as_the_reference_and_tensor_split_cut_it(samples, spatial, ghost_size):
    x = torch.zeros(samples, 3, *spatial)
    sizes = part_sizes(x, ghost_size)
    if samples:
        least = 1 if spatial == (2, 2) else 2
        assert sizes == [g.stop - g.start for g in reference.ghost_batches(samples, ghost_size, least)]
    assert sizes == [len(part) for part in x.tensor_split(len(sizes))]


def run(
    shape: tuple[int, ...],
    ghost_size: int | None,
    dtype: torch.dtype = torch.float32,
    format: str = "contiguous",
    activation: str | Activation = "identity",
    residual: bool = False,
    affine: bool = True,
    masked: bool = False,
    momentum: float | None = 0.3,
) -> dict[str, Tensor]:
    """Output, gradients and buffers; without a ``ghost_size`` by one `batch_norm` for each part of four."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    channels = shape[1]
    x = FORMATS[format]((2 * draw(*shape) + 3).to(dtype)).requires_grad_()
    added = FORMATS[format](draw(*shape).to(dtype)).requires_grad_() if residual else None
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (draw(channels).to(statistics).requires_grad_() if affine else None for _ in range(2))
    dy = draw(*shape).to(dtype)
    mask = torch.rand(shape[0], *shape[2:], generator=generator) < 0.7 if masked else None
    mean, var, seen = torch.zeros(channels), torch.ones(channels), torch.tensor(2)
    moved = {"activation": activation, "num_batches_tracked": seen}
    layer = (mean, var, weight, bias, True, momentum)
    if ghost_size is not None:
        output = ghost_batch_norm(x, *layer, ghost_size=ghost_size, residual=added, mask=mask, **moved)
    else:
        sizes = part_sizes(x, 4)
        nothing = [None] * len(sizes)
        parts = zip(
            x.split(sizes),
            nothing if added is None else added.split(sizes),
            nothing if mask is None else mask.split(sizes),
            strict=True,
        )
        output = torch.cat([batch_norm(part, *layer, residual=r, mask=m, **moved) for part, r, m in parts])
    wanted = {
        name: tensor
        for name, tensor in (("input", x), ("weight", weight), ("bias", bias), ("residual", added))
        if tensor is not None
    }
    found = dict(zip(wanted, torch.autograd.grad(output, list(wanted.values()), dy), strict=True))
    return {"output": output, **found, "mean": mean, "var": var, "seen": seen}


def assert_same(ours: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    for name, tensor in parts.items():
        if name in ("weight", "bias"):  # one is rounded once, the other for each part
            torch.testing.assert_close(ours[name], tensor, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(ours[name], tensor), name


# Each way of walking: planes, a matrix of positions, of samples, of folded rows with a rest; even parts and others.
SHAPES = [(8, 3, 5, 5), (11, 5, 2, 3), (13, 5), (9, 16, 4, 4), (16, 2, 700), (7, 3, 1, 1)]


@needs_kernels
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_parts_at_once_are_the_parts_one_by_one_to_the_last_bit(instruction_set, dtype):
    with computing(instruction_set):
        for shape in SHAPES:
            for format in FORMATS:
                assert_same(run(shape, 4, dtype, format), run(shape, None, dtype, format))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(
    "activation", ["relu", "silu", "hardtanh", Activation("leaky_relu", negative_slope=-0.7)], ids=str
)
def test_what_is_kept_for_the_backward_pass_is_each_parts_own(activation, masked):
    for shape in SHAPES:
        for format in ("contiguous", "channels-last", "sliced"):
            for residual in (False, True):
                arguments = {"format": format, "activation": activation, "residual": residual, "masked": masked}
                assert_same(run(shape, 4, **arguments), run(shape, None, **arguments))


@pytest.mark.parametrize(
    "arguments", [{"affine": False}, {"momentum": None}, {"momentum": 1.0}, {"momentum": 0.0}], ids=str
)
def test_other_arguments(arguments):
    assert_same(run((11, 5, 2, 3), 4, **arguments), run((11, 5, 2, 3), None, **arguments))


@pytest.fixture(params=[True, False], ids=["parts-in-threads", "threads-in-parts"])
def large(request: pytest.FixtureRequest) -> tuple[tuple[int, ...], int]:
    return ((64, 3, 40, 40), 4) if request.param else ((12, 3, 120, 120), 4)


@needs_kernels
@pytest.mark.parametrize("format", ["contiguous", "channels-last"])
def test_any_number_of_threads_gives_the_same(large: tuple[tuple[int, ...], int], format: str) -> None:
    shape, ghost_size = large
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(run(shape, ghost_size, format=format, activation="relu", residual=True))
    for other in found[1:]:
        for name, tensor in found[0].items():
            assert torch.equal(tensor, other[name]), name


@pytest.fixture(params=["direct", "operators"])
def road(request: pytest.FixtureRequest) -> Iterator[None]:
    """The direct functions, and the operators, which profilers watch."""
    if request.param == "direct":
        yield
    else:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            yield


def test_one_node_whatever_the_number_of_parts(road: None) -> None:
    x = torch.randn(12, 3, 2, requires_grad=True)
    node = ghost_batch_norm(x, None, None, training=True, ghost_size=2).grad_fn
    assert [type(before).__name__ for before, _ in node.next_functions if before is not None] == ["AccumulateGrad"]


def test_forward_watched_and_backward_not_read_the_same_bits() -> None:
    def slopes(watched: bool) -> Tensor:
        x, residual = torch.randn(2, 11, 5, 3, generator=torch.Generator().manual_seed(1)).unbind()
        residual.requires_grad_()
        arguments = {"training": True, "ghost_size": 4, "activation": "relu", "residual": residual}
        if watched:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
                output = ghost_batch_norm(x, None, None, **arguments)
        else:
            output = ghost_batch_norm(x, None, None, **arguments)
        return torch.autograd.grad(output.sum(), residual)[0]

    assert torch.equal(slopes(True), slopes(False))


def test_autograd_finds_out_that_buffers_moved() -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    factor = torch.ones(3, requires_grad=True)
    product = factor * mean
    ghost_batch_norm(torch.randn(8, 3), mean, var, training=True, ghost_size=4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
