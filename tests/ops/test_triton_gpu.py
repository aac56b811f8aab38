"""The Triton kernels on a GPU: the cases of ``test_triton.py`` at real sizes, and what no interpreter can tell.

Around the layers see ``test_gpu.py``; that nothing waits for the device is looked at there too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor, nn

import batchnorm
from batchnorm import Activation, ops
from contract import CHECKS, LAYERS, Layer
from ops import kernel_nonfinite, triton_layers
from ops import triton_checks as checks
from ops.kernel_cases import ACTIVATIONS, AFFINE, DTYPES, FORMATS_AND_EXPANDED, MASKS, OPS, descriptions, draw
from ops.kernel_checks import check, near
from ops.test_accuracy import accuracy
from tolerance import assert_three_way, double

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU; test_triton.py has the kernels in Triton's interpreter", allow_module_level=True)

DEVICE = "cuda"
RELU, SILU = ACTIVATIONS[1], ACTIVATIONS[6]
# Channels that stay on the chip, and tensors in slices of several tiles; planes and rows; even and odd.
SHAPES = {
    "planes, on the chip": ((8, 16, 14, 14), "contiguous"),
    "rows, on the chip": ((300, 37), "contiguous"),
    "nhwc, on the chip": ((2, 64, 7, 7), "channels-last"),
    "planes": ((16, 3, 112, 112), "contiguous"),
    "planes, odd": ((7, 5, 55, 57), "contiguous"),
    "rows": ((20_000, 40), "contiguous"),
    "nhwc": ((8, 64, 56, 56), "channels-last"),
    "nhwc, odd": ((5, 37, 41, 43), "channels-last"),
}
by_shape = pytest.mark.parametrize("where", list(SHAPES))


def test_the_kernels_serve_this_gpu() -> None:
    """Every other test would pass without them."""
    x, mask = torch.randn(4, 3, device=DEVICE), torch.ones(4, dtype=torch.bool, device=DEVICE)
    assert batchnorm.backends()[1].available, batchnorm.backends()[1].reason
    assert ops.explain(x).startswith("triton: ")
    assert ops.explain(x, mask).startswith("triton: ")


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_each_activation(activation: Activation) -> None:
    place = ACTIVATIONS.index(activation)
    for by, (shape, format) in enumerate((list(SHAPES.values()) * 2)[place % 4 :][:4:3]):
        dtype = DTYPES[(place + by) % 4]
        case = draw(shape, dtype, format, residual=format, activation=activation, device=DEVICE)
        check(case, brief=True)


@by_shape
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_shape_in_each_dtype(where: str, dtype: torch.dtype) -> None:
    shape, format = SHAPES[where]
    check(draw(shape, dtype, format, residual=format, activation=RELU, device=DEVICE), brief=True)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("where", ["planes, on the chip", "rows", "nhwc, odd"])
def test_each_mask(where: str, mask: str) -> None:
    shape, format = SHAPES[where]
    check(draw(shape, torch.float32, format, mask=mask, activation=SILU, device=DEVICE), brief=True)


@pytest.mark.parametrize("format", list(FORMATS_AND_EXPANDED))
def test_each_format(format: str) -> None:
    names = list(FORMATS_AND_EXPANDED)
    others = (names[(names.index(format) + by) % len(names)] for by in (1, 2))
    check(draw((6, 7, 20, 30), torch.bfloat16, format, *others, activation=RELU, device=DEVICE), brief=True)


@pytest.mark.parametrize("affine", AFFINE)
def test_each_kind_of_parameters(affine: str) -> None:
    for dtype in (torch.float32, torch.float16):
        check(draw((900, 50), dtype, affine=affine, activation=SILU, device=DEVICE), brief=True)


SPATIAL = [(), (1,), (15,), (16,), (33,), (129,), (1, 1), (3, 5), (7, 7), (1, 16), (2, 3, 2), (32, 33), (4099,)]
RANDOM: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": (Phase.generate,),
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=10, **RANDOM)
@given(description=descriptions(SPATIAL, samples=300, most=500_000))
def test_every_operator(description: tuple[Any, ...]) -> None:
    check(draw(*description, device=DEVICE), brief=True)


@pytest.mark.slow
@settings(max_examples=200, **RANDOM)
@given(description=descriptions(SPATIAL, samples=300, most=500_000))
def test_every_operator_on_many_more(description: tuple[Any, ...]) -> None:
    check(draw(*description, device=DEVICE))


@by_shape
def test_the_same_bits_every_time_in_every_stream(where: str) -> None:
    shape, format = SHAPES[where]
    case = draw(shape, torch.float32, format, residual=format, mask="random", activation=RELU, device=DEVICE)
    wanted = checks.results(case)
    for _ in range(3):
        checks.assert_same_bits(checks.results(case), wanted)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for stream in streams:
        with torch.cuda.stream(stream):
            found.append(checks.results(case))
    torch.cuda.synchronize()
    for each in found:
        checks.assert_same_bits(each, wanted)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_over_the_whole_line(dtype: torch.dtype, activation: Activation) -> None:
    """Twice the steps of the CPU: a GPU's exponential and division are off by two or three themselves."""
    checks.check_over_the_whole_line(dtype, activation, DEVICE, (8, 180 if activation.name == "gelu_tanh" else 40))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_number(dtype: torch.dtype) -> None:
    checks.check_every_half_precision_number(dtype, DEVICE)


def test_update_running() -> None:
    checks.check_update_running(DEVICE)


@pytest.mark.parametrize("name", [name for name in accuracy.CASES if name not in accuracy.BEYOND_EAGER])
def test_accuracy(name: str) -> None:
    checks.check_accuracy(name, torch.float32, DEVICE)


@pytest.mark.parametrize("name", accuracy.DOUBLE)
def test_accuracy_in_double(name: str) -> None:
    checks.check_accuracy(name, torch.float64, DEVICE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", accuracy.HALF)
def test_accuracy_in_half_precision(name: str, dtype: torch.dtype) -> None:
    checks.check_accuracy(name, dtype, DEVICE)


@pytest.mark.parametrize("format", ["contiguous", "channels-last"])
def test_padding_hides_no_spread(format: str) -> None:
    checks.check_padding_hides_no_spread(FORMATS_AND_EXPANDED[format], DEVICE)


# --- what is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_as_in_torch(activation: Activation, training: bool) -> None:
    shapes = ((4, 5, 7, 7), "contiguous"), ((40, 5), "contiguous"), ((8, 16, 40, 40), "channels-last")
    kernel_nonfinite.check_as_in_torch(activation, training, shapes, (37,), DEVICE)


def test_every_place_is_seen() -> None:
    shapes = ((2, 3, 37), "contiguous"), ((5, 37), "contiguous"), ((3, 24, 3), "channels-last")
    kernel_nonfinite.check_every_place_is_seen(torch.float32, shapes, 5, DEVICE)
    kernel_nonfinite.check_every_place_is_seen(torch.bfloat16, (((4, 2, 80, 81), "contiguous"),), 1009, DEVICE)


@pytest.mark.parametrize("bad", kernel_nonfinite.BAD, ids=str)
def test_the_buffers_keep_out_what_is_not_finite(bad: float) -> None:
    for shape in ((4, 5, 7, 7), (9000, 40)):
        kernel_nonfinite.check_buffers_keep_out(bad, shape, (0, 4), DEVICE)
    kernel_nonfinite.check_variance_that_the_buffer_cannot_hold(DEVICE)


@pytest.mark.parametrize("shape", [(6, 3, 5, 7), (50_000, 8)], ids=str)
def test_values_that_float_cannot_square_or_subtract(shape: tuple[int, ...]) -> None:
    kernel_nonfinite.check_what_float_cannot_square(shape, (1e25,), False, DEVICE)


@pytest.mark.parametrize("mask", ["random", "runs", "sample", "none"])
@pytest.mark.parametrize("shape", [(6, 8, 5, 7), (6, 3, 80, 90), (600, 40)], ids=str)
def test_nothing_leaks_out_of_the_padding(shape: tuple[int, ...], mask: str) -> None:
    for activation in (RELU, SILU):
        kernel_nonfinite.check_nothing_leaks(shape, "channels-last", mask, activation, device=DEVICE)


# --- operators, layers and graphs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", triton_layers.OPERATORS)
def test_operators_are_what_their_schemas_say(name: str) -> None:
    triton_layers.check_operator(name, DEVICE)


@pytest.mark.parametrize("name", triton_layers.CHECKS)
def test_around_layers(name: str) -> None:
    triton_layers.CHECKS[name](DEVICE)


FEW = ("BatchNorm1d-NC", "BatchNormAct2d-relu", "BatchNormAct3d-elu", "BatchRenorm2d-relu", "GhostBatchNorm2d-relu")


@pytest.mark.parametrize(
    "layer",
    [pytest.param(layer, marks=() if layer.name in FEW else pytest.mark.slow) for layer in LAYERS],
    ids=str,
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(check: Callable[[Layer], None], layer: Layer) -> None:
    with torch.device(DEVICE):
        check(layer)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("where", ["planes, on the chip", "nhwc"])
def test_a_cuda_graph_replays_a_step_of_training(where: str, momentum: float | None) -> None:
    shape, format = SHAPES[where]
    layer = batchnorm.BatchNormAct2d(shape[1], momentum=momentum, activation="relu", device=DEVICE)
    x, residual, dy = (FORMATS_AND_EXPANDED[format](torch.randn(shape, device=DEVICE)) for _ in range(3))
    inputs = (x.requires_grad_(), residual.requires_grad_(), layer.weight, layer.bias)

    def step(of: nn.Module) -> tuple[Tensor, ...]:
        output = of(x, residual)
        return output, *torch.autograd.grad(output, (x, residual, of.weight, of.bias), dy)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(layer)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(layer)
    plain = copy.deepcopy(layer)  # capturing has moved nothing
    for _ in range(3):
        with torch.no_grad():
            for tensor in inputs[:2]:
                tensor.normal_()
        graph.replay()
        for one, other in zip(captured, step(plain), strict=True):
            assert torch.equal(one, other)
        for name, buffer in layer.named_buffers():
            assert torch.equal(buffer, plain.get_buffer(name)), name


class Residual(nn.Module):
    """As torchvision's, of torch's own layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.last = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.first(x)))
        return self.relu(self.last(self.second(y)) + x)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    stem = (nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    return nn.Sequential(*stem, Residual(32), Residual(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def test_a_step_of_a_network_in_mixed_precision() -> None:
    """Channels-last under autocast, every norm fused with what follows it; torch's own error is the measure."""
    exact = network().double()
    images, targets = torch.randn(16, 3, 34, 34), torch.randint(10, (16,))
    theirs = network().to(DEVICE, memory_format=torch.channels_last)
    x = images.to(DEVICE, memory_format=torch.channels_last)
    ours = copy.deepcopy(batchnorm.fuse(theirs, x).model)
    nn.functional.cross_entropy(exact(images.double()), targets).backward()
    for model in (ours, theirs):
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x).float(), targets.to(DEVICE))
        loss.backward()
    for name, parameter in exact.named_parameters():
        pair = (model.get_parameter(name).grad for model in (ours, theirs))
        # Gradients of float32 parameters, of a network whose activations are bfloat16.
        found, wanted = (gradient.bfloat16() for gradient in pair if gradient is not None)
        assert_three_way(name, found, wanted, double(parameter.grad))
    for name, buffer in exact.named_buffers():
        pair = (model.get_buffer(name) for model in (ours, theirs))
        found, wanted = (value.bfloat16() for value in pair)
        assert_three_way(name, found, wanted, double(buffer))


def test_a_bit_an_element_is_kept() -> None:
    x, residual = torch.randn(2, 64, 64, 32, 32, device=DEVICE).unbind()
    layer = batchnorm.BatchNormAct2d(64, activation="relu", device=DEVICE)
    layer(x, residual)
    residual.requires_grad_()
    before = torch.cuda.memory_allocated()
    output = layer(x, residual)
    kept = torch.cuda.memory_allocated() - before - output.nbytes
    assert output.numel() / 8 <= kept <= output.numel() / 8 + 16 * 1024  # vectors, each in a block of the allocator


@pytest.mark.parametrize("format", ["contiguous", "channels-last"])
def test_more_than_two_to_the_31_values(format: str) -> None:
    """Copies of one small batch: their statistics and gradients are known from it."""
    small = draw((8, 64, 32, 32), torch.bfloat16, format, residual=format, activation=RELU, device=DEVICE)
    times = 2**31 // small.input.numel() + 1
    needed = 12 * times * small.input.nbytes
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"takes {needed >> 30} GiB of GPU memory")

    def many(tensor: Tensor | None) -> Tensor:
        assert tensor is not None
        rows = tensor.movedim(1, -1) if format == "channels-last" else tensor
        rows = rows.repeat(times, *[1] * (rows.dim() - 1))
        return rows.movedim(-1, 1) if format == "channels-last" else rows

    large = copy.copy(small)
    large.input, large.grad_output, large.residual = map(many, (small.input, small.grad_output, small.residual))
    output, count, mean, var, bits = large.forward(keep_bits=True)
    _, few, small_mean, small_var, _ = small.forward(keep_bits=True)
    assert int(count) == times * int(few)
    near("mean", mean, small_mean)
    near("var", var, small_var)
    # By the same statistics, since by others a value may fall on the other side of a kink.
    wanted = OPS.normalize(*small.layer(mean, var), *small.described)
    by_bits = (large.grad_output, *large.layer(mean, var, residual=False), bits)
    found = OPS.backward(*by_bits, count, *large.described, [True] * 4)
    expected = OPS.backward(small.grad_output, *small.layer(mean, var), None, few, *small.described, [True] * 4)
    for place in (slice(0, 8), slice(-8, None)):
        near("output", output[place], wanted)
        near("grad_input", found[0][place], expected[0])
        near("grad_residual", found[3][place], expected[3])
    for name, one, other in zip(("grad_weight", "grad_bias"), found[1:3], expected[1:3], strict=True):
        torch.testing.assert_close(one / times, other, rtol=1e-3, atol=1e-2, msg=lambda m, n=name: f"{n}: {m}")
