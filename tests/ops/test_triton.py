"""The Triton kernels against the float64 reference, as ``test_cpu.py`` has the CPU's, in Triton's interpreter.

Each case runs as its size has it, with every channel on the chip (``whole``), and cut into tiles of 64 values and
slices of several tiles (``split``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from batchnorm import Activation
from batchnorm.ops import dispatch
from batchnorm.ops.triton import kernels, passes
from ops import kernel_nonfinite
from ops import triton_checks as checks
from ops.kernel_cases import ACTIVATIONS, AFFINE, DTYPES, FORMATS_AND_EXPANDED, MASKS, descriptions, draw
from ops.kernel_checks import check, check_once, near
from ops.test_accuracy import accuracy
from ops.triton_interpreter import is_interpreted
from ops.triton_serving import serving, split, wide

if not is_interpreted:
    pytest.skip("Triton compiles here: the same cases are in test_triton_gpu.py", allow_module_level=True)

SPATIAL = [
    (),
    (1,),
    (2,),
    (15,),
    (16,),
    (17,),
    (33,),
    (150,),
    (1, 1),
    (3, 5),
    (4, 4),
    (7, 7),
    (1, 16),
    (2, 3, 2),
    (9, 33),
]
RELU, SILU = ACTIVATIONS[1], ACTIVATIONS[6]
# Planes, rows, and rows of channels that fill no block; split, sums are of several slices of several tiles.
SHAPES = {
    "planes": ((3, 1, 5, 27), "contiguous"),
    "rows": ((400, 9), "contiguous"),
    "nhwc": ((2, 8, 11, 19), "channels-last"),
}
by_shape = pytest.mark.parametrize("where", list(SHAPES))


_normal = accuracy._normal


@pytest.fixture(scope="module", autouse=True)
def _served() -> Iterator[None]:
    with serving():
        yield


@pytest.fixture(params=["whole", "split"])
def cut(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "whole":
        yield request.param
    else:
        with split():
            yield request.param


def test_what_runs_here_is_what_is_meant() -> None:
    """Every other test would pass without Triton, too: by the CPU's kernels."""
    for shape, format in SHAPES.values():
        x = FORMATS_AND_EXPANDED[format](torch.randn(shape))
        assert dispatch.kernels(x, None) is kernels
        passes.plan.cache_clear()
        torch.ops.batchnorm.moments(x, None)
        assert passes.plan.cache_info().currsize == 1
        described = (x.shape, x.stride(), x.dtype)
        assert passes.plan(*described).fits_whole("whole_forward") is not None
        with split():
            there = passes.plan(*described)
            assert there.fits_whole("whole_forward") is there.fits_whole("whole_backward") is None
            for kernel in ("partial_moments", "partial_sums"):
                assert min(there.cut(kernel).steps, there.cut(kernel).slices) > 1
        with split(programs=1024):
            there = passes.plan(*described)
            assert there.cut("partial_moments").slices > there.merge(there.cut("partial_moments").slices).slices


# Nothing is made smaller where one fails: it is short, and that takes minutes.
RANDOM: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": (Phase.generate,),
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=8, **RANDOM)
@given(description=descriptions(SPATIAL, channels=12, samples=40, most=3_000))
def test_every_operator_whole(description: tuple[Any, ...]) -> None:
    check(draw(*description), brief=True)


@settings(max_examples=6, **RANDOM)
@given(description=descriptions(SPATIAL, channels=4, samples=40, most=1_000))
def test_every_operator_split(description: tuple[Any, ...]) -> None:
    with split(programs=1024):
        check_once(draw(*description))


@pytest.mark.slow
@settings(max_examples=60, **RANDOM)
@given(description=descriptions(SPATIAL, channels=40, most=5_000))
def test_every_operator_on_many_more(description: tuple[Any, ...]) -> None:
    check(draw(*description), brief=True)
    with split():
        check_once(draw(*description))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_each_activation(activation: Activation) -> None:
    """Of shape and dtype each has its own in ``make test``, and every pair of the two comes."""
    place = ACTIVATIONS.index(activation)
    shape, format = list(SHAPES.values())[place % 3]
    check(draw(shape, DTYPES[place % 4], format, residual=format, activation=activation), brief=True)
    with split():
        check_once(draw(shape, DTYPES[place % 4], format, residual=format, activation=activation))


@pytest.mark.slow
@by_shape
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_each_activation_in_each_dtype(where: str, dtype: torch.dtype, activation: Activation) -> None:
    shape, format = SHAPES[where]
    for residual, around in ((None, nullcontext()), (format, split())):
        with around:
            check_once(draw(shape, dtype, format, residual=residual, activation=activation))


@pytest.mark.parametrize("mask", MASKS)
def test_each_mask(mask: str) -> None:
    for where, activation in (("planes", RELU), ("rows", SILU)):
        shape, format = SHAPES[where]
        case = draw(shape, torch.float32, format, residual=format, mask=mask, activation=activation)
        if (where == "rows") == (MASKS.index(mask) % 2 == 0):
            check(case, brief=True)
        else:
            with split():
                check_once(case)


@pytest.mark.parametrize("format", list(FORMATS_AND_EXPANDED))
def test_each_format(format: str) -> None:
    """Of the input, and beside it two others, of gradient and residual."""
    names = list(FORMATS_AND_EXPANDED)
    others = (names[(names.index(format) + by) % len(names)] for by in (1, 2))
    check(draw((2, 3, 4, 5), torch.bfloat16, format, *others, activation=RELU), brief=True)


@pytest.mark.parametrize("affine", AFFINE)
def test_each_kind_of_parameters(affine: str) -> None:
    for dtype in (torch.float32, torch.float16):
        check(draw((9, 5), dtype, affine=affine, activation=SILU), brief=True)


def test_every_choice_of_gradients() -> None:
    for where, activation in (("planes", RELU), ("rows", SILU)):
        shape, format = SHAPES[where]
        check(draw(shape, torch.float32, format, residual=format, activation=activation))


@pytest.mark.parametrize(
    "where", ["rows", *(pytest.param(where, marks=pytest.mark.slow) for where in SHAPES if where != "rows")]
)
def test_split_is_whole_up_to_rounding(where: str) -> None:
    """And is cut the same way every time, whatever lies beside the values in memory: the same bits."""
    shape, format = SHAPES[where]
    case = draw(shape, torch.float32, format, residual=format, mask="random", activation=RELU)
    whole = checks.results(case)
    with split():
        found = checks.results(case)
        for name, tensor in found.items():
            if tensor.is_floating_point():
                near(name, tensor.float(), whole[name].float())  # what is in double was computed in float
            else:
                assert torch.equal(tensor, whole[name])
        checks.assert_same_bits(checks.results(case), found)
        case.input = torch.cat([case.input.new_ones(1), case.input.flatten()])[1:].view(shape)
        case.input = FORMATS_AND_EXPANDED[format](case.input)
        checks.assert_same_bits(checks.results(case), found)


@by_shape
def test_offsets_of_64_bits_are_those_of_32(where: str, cut: str) -> None:
    shape, format = SHAPES[where]
    mask = "runs" if cut == "whole" else None
    case = draw(shape, torch.float32, format, residual=format, mask=mask, activation=RELU)
    narrow = checks.results(case)
    with wide():
        assert passes.plan(case.input.shape, case.input.stride(), case.input.dtype).walk.wide
        checks.assert_same_bits(checks.results(case), narrow)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_over_the_whole_line(dtype: torch.dtype, activation: Activation) -> None:
    """Steps as in ``test_cpu_activations.py``; a GPU's exponential is another, and has bounds of its own."""
    checks.check_over_the_whole_line(dtype, activation, "cpu", (4, 90 if activation.name == "gelu_tanh" else 20))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_number(dtype: torch.dtype) -> None:
    checks.check_every_half_precision_number(dtype, "cpu")


def test_update_running() -> None:
    checks.check_update_running("cpu")


# Small relatives of those of benchmarks/accuracy.py, and in their place.
ADVERSARIAL: dict[str, Callable[[], Tensor]] = {
    "standard normal": lambda: _normal(8, 3, 7, 7),
    "mean 1e4, std 1e-2": lambda: 1e4 + 1e-2 * _normal(16, 3, 5, 4),
    "mean 1e6, std 1e-1": lambda: 1e6 + 1e-1 * _normal(16, 3, 5, 4),
    "denormals": lambda: 1e-40 * _normal(16, 3, 5, 4),
    "scale 1e15": lambda: 1e15 * _normal(16, 3, 5, 4),
    "constant channels": lambda: (100 * _normal(1, 3, 1, 1)).expand(16, 3, 5, 4),
    "one outlier of 1e6": lambda: accuracy._outlier(16, 3, 5, 4),
    "first value 1e10": lambda: accuracy._with(_normal(1, 3, 16, 20), 1e10, 320),
    "a mean of its own a sample": lambda: accuracy._by_sample(1e-2 * _normal(16, 3, 5, 4), 100.0),
    "sorted": lambda: (1e3 * _normal(320, 3)).sort(0)[0],
    "two values a channel": lambda: _normal(2, 24),
    "two values a channel, spatial": lambda: 100 + _normal(1, 3, 2, 1),
    "37 channels": lambda: _normal(40, 37),
    "one outlier of 1e30": lambda: accuracy._with(_normal(8, 3, 7, 7), 1e30, 8 * 3 * 49),
}


# Where there is nothing to cancel, or nothing to merge.
ONLY_WHOLE = ("standard normal", "scale 1e15", "two values a channel", "two values a channel, spatial", "37 channels")


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_inputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(accuracy.CASES, name, ADVERSARIAL[name])
    checks.check_accuracy(name, torch.float32, "cpu")
    if name not in ONLY_WHOLE:
        with split(programs=1024):  # slices of one tile, as sums of so few values have them
            checks.check_accuracy(name, torch.float32, "cpu", draws=1)


@pytest.mark.parametrize("format", ["contiguous", "channels-last"])
def test_padding_hides_no_spread(format: str, cut: str) -> None:
    checks.check_padding_hides_no_spread(FORMATS_AND_EXPANDED[format], "cpu")


# --- what is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_as_in_torch(activation: Activation) -> None:
    shapes = ((3, 2, 3, 3), "contiguous"), ((20, 3), "contiguous")
    place = ACTIVATIONS.index(activation)
    kernel_nonfinite.check_as_in_torch(activation, True, shapes[place % 2 :][:1], places=(17,))
    kernel_nonfinite.check_as_in_torch(activation, False, shapes[1 - place % 2 :][:1], places=(17,))


def test_every_place_is_seen(cut: str) -> None:
    shapes = ((2, 2, 37), "contiguous"), ((37, 3), "contiguous")
    kernel_nonfinite.check_every_place_is_seen(torch.float32, shapes, step=7)


@pytest.mark.parametrize("bad", kernel_nonfinite.BAD, ids=str)
def test_the_buffers_keep_out_what_is_not_finite(bad: float) -> None:
    kernel_nonfinite.check_buffers_keep_out(bad, (4, 5, 7, 7), channels=(0, 4))
    with split():
        kernel_nonfinite.check_buffers_keep_out(bad, (200, 5), channels=(4,))
        kernel_nonfinite.check_variance_that_the_buffer_cannot_hold()


@pytest.mark.parametrize("shape", [(6, 3, 5, 7), (50, 8)], ids=str)
def test_values_that_float_cannot_square_or_subtract(shape: tuple[int, ...], cut: str) -> None:
    kernel_nonfinite.check_what_float_cannot_square(shape, sizes=(1e25,), exact=False)


@pytest.mark.parametrize("mask", ["random", "sample", "none"])
def test_nothing_leaks_out_of_the_padding(mask: str) -> None:
    for activation in (RELU, SILU):
        kernel_nonfinite.check_nothing_leaks((6, 3, 5, 7), "contiguous", mask, activation)
    kernel_nonfinite.check_nothing_leaks((6, 3, 5, 7), "channels-last", mask, ACTIVATIONS[0], (1e30, -1e30, 1e30))
    with split():
        kernel_nonfinite.check_nothing_leaks((160, 3), "contiguous", mask, RELU)
