"""``fold``: every kind of layer, geometry and side, to the last digits of float64."""

import pytest
import torch
from torch import nn

from batchnorm.surgery.fold import fold
from surgery.filled import check_folded, filled

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
# In and out differ, in every group too: an axis that is taken for another one does not fit, or gives other values.
IN, OUT = 6, 8
GEOMETRY = {
    "plain": {},
    "padded": {"padding": 1},
    "strided": {"stride": 2, "padding": 2},
    "dilated": {"dilation": 2},
    "same": {"padding": "same"},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": 2, "padding_mode": "circular"},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
}
TRANSPOSED_GEOMETRY = {
    "plain": {},
    "padded": {"padding": 1},
    "strided": {"stride": 2, "padding": 1, "output_padding": 1},
    "dilated": {"dilation": 2, "output_padding": 1},
}
UNPADDED = {"plain", "dilated", "valid", "reflect", "circular", "replicate"}


def data(dims: int, channels: int = IN) -> torch.Tensor:
    return torch.randn(3, channels, *(7, 6, 5)[:dims], dtype=torch.float64)


def after(layer: nn.Module, dims: int, affine: bool = True) -> nn.Module:
    return filled(nn.Sequential(layer, NORMS[dims](OUT, affine=affine))).double()


def before(layer: nn.Module, dims: int, affine: bool = True) -> nn.Module:
    return filled(nn.Sequential(NORMS[dims](IN, affine=affine), layer)).double()


@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("dims", CONVOLUTIONS)
@pytest.mark.parametrize(("groups", "bias", "affine"), [(1, True, True), (2, False, True), (2, True, False)])
def test_norm_after_a_convolution(dims, geometry, groups, bias, affine):
    layer = CONVOLUTIONS[dims](IN, OUT, 3, groups=groups, bias=bias, **GEOMETRY[geometry])
    check_folded(after(layer, dims, affine), data(dims))


@pytest.mark.parametrize("geometry", TRANSPOSED_GEOMETRY)
@pytest.mark.parametrize("dims", TRANSPOSED)
@pytest.mark.parametrize(("groups", "bias", "affine"), [(1, True, True), (2, False, True), (2, True, False)])
def test_norm_after_a_transposed_convolution(dims, geometry, groups, bias, affine):
    layer = TRANSPOSED[dims](IN, OUT, 3, groups=groups, bias=bias, **TRANSPOSED_GEOMETRY[geometry])
    check_folded(after(layer, dims, affine), data(dims))


@pytest.mark.parametrize("geometry", sorted(UNPADDED))
@pytest.mark.parametrize("dims", CONVOLUTIONS)
@pytest.mark.parametrize(("groups", "bias", "affine"), [(1, True, True), (2, False, True), (2, True, False)])
def test_norm_before_a_convolution(dims, geometry, groups, bias, affine):
    layer = CONVOLUTIONS[dims](IN, OUT, 3, groups=groups, bias=bias, **GEOMETRY[geometry])
    check_folded(before(layer, dims, affine), data(dims))


@pytest.mark.parametrize("geometry", [{}, {"padding": 0, "groups": 2}], ids=["plain", "grouped"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", TRANSPOSED)
def test_norm_before_a_transposed_convolution_of_one_tap(dims, bias, geometry):
    check_folded(before(TRANSPOSED[dims](IN, OUT, 1, bias=bias, **geometry), dims), data(dims))


@pytest.mark.parametrize("padding", [1, "same"])
def test_a_kernel_of_one_tap_may_pad_with_nothing(padding):
    model = before(nn.Conv2d(IN, OUT, 1, padding=padding), 2)
    if padding == "same":
        check_folded(model, data(2))
    else:  # a border of zeros, which the norm does not see
        assert [outcome.detail for outcome in fold(model, data(2)).kept] == [
            "before: its input is the model's own; after: 1 (Conv2d) pads with zeros"
        ]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(IN, OUT, 3, padding=1, groups=2),
        nn.ConvTranspose2d(IN, OUT, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
    ],
    ids=["padded", "transposed"],
)
def test_norm_before_whose_shift_is_zero_goes_into_any_layer(layer):
    model = before(layer, 2)
    model[0].running_mean.zero_()
    nn.init.zeros_(model[0].bias)
    check_folded(model, data(2))
    assert (fold(model, data(2)).model[1].bias is None) == (layer.bias is None)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_linear(bias, affine):
    x = torch.randn(9, IN, dtype=torch.float64)
    check_folded(after(nn.Linear(IN, OUT, bias=bias), 1, affine), x)
    check_folded(before(nn.Linear(IN, OUT, bias=bias), 1, affine), x)
