"""Blocks: order, bias, dropout, shapes, and the residual block's start as the identity."""

import pytest
import torch

import batchnorm
from batchnorm import BatchNorm2d, BatchNormAct2d, ConvBlock, LinearBlock, ResidualBlock
from batchnorm.errors import ArgumentError, ShapeError


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("norm", ["before", "after"])
def test_conv_block_is_its_parts(norm: str, dimensions: int) -> None:
    block = ConvBlock(3, 6, 3, norm=norm, activation="silu", dimensions=dimensions)
    x = torch.randn(4, 3, *(6,) * dimensions)
    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[dimensions - 1]
    z = convolve(x, block.conv.weight, block.conv.bias, padding=1)
    normalise = torch.nn.functional.batch_norm
    silu = torch.nn.functional.silu
    wanted = (
        silu(normalise(z, None, None, training=True))
        if norm == "before"
        else normalise(silu(z), None, None, training=True)
    )
    torch.testing.assert_close(block(x), wanted)
    assert (block.conv.bias is None) == (norm == "before")
    assert not any(isinstance(module, torch.nn.Dropout) for module in block.modules())


def test_order_of_the_layers() -> None:
    assert [type(m) for m in ConvBlock(3, 6, 3, dropout=0.2)] == [torch.nn.Conv2d, BatchNormAct2d, torch.nn.Dropout]
    after = list(ConvBlock(3, 6, 3, norm="after", dropout=0.2))
    assert type(after[2]) is BatchNorm2d
    assert isinstance(after[3], torch.nn.Dropout)


def test_arguments_reach_their_layers() -> None:
    block = ConvBlock(
        4,
        8,
        (3, 5),
        stride=2,
        dilation=2,
        groups=2,
        padding_mode="reflect",
        eps=1e-3,
        momentum=None,
        dtype=torch.float64,
    )
    conv, norm = block[0], block[1]
    assert (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((2, 2), (2, 2), 2, "reflect")
    assert conv.padding == (2, 4)
    assert (norm.eps, norm.momentum, norm.weight.dtype) == (1e-3, None, torch.float64)
    assert block(torch.randn(2, 4, 16, 16, dtype=torch.float64)).shape == (2, 8, 8, 8)
    assert ConvBlock(3, 4, 3, padding="valid")(torch.randn(2, 3, 8, 8)).shape == (2, 4, 6, 6)


def test_layers_have_names_and_slices_are_sequences() -> None:
    block = ConvBlock(3, 6, 3, norm="after", dropout=0.2)
    assert list(dict(block.named_children())) == ["conv", "activation", "norm", "dropout"]
    assert list(dict(ConvBlock(3, 6, 3).named_children())) == ["conv", "norm"]
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(block[:2](x), block.activation(block.conv(x)))
    assert block[-1] is block.dropout


def test_arguments_reach_the_layers_of_the_other_blocks() -> None:
    assert LinearBlock(4, 8, eps=1e-3, momentum=None)[1].eps == 1e-3
    assert ResidualBlock(8, bottleneck=4, groups=2).inner[1].conv.groups == 2
    assert ResidualBlock(8, eps=1e-3).norm.eps == 1e-3


def test_linear_block() -> None:
    for norm in ("before", "after"):
        block = LinearBlock(4, 8, norm=norm, dropout=0.5)
        assert (block.linear.bias is None) == (norm == "before")
        assert block(torch.randn(16, 4)).shape == (16, 8)
    with pytest.raises(ShapeError, match="flatten"):
        # (N, L, C) with L == C would pass silently, and normalise over the wrong axis.
        LinearBlock(4, 4)(torch.randn(2, 4, 4))


@pytest.mark.parametrize("bottleneck", [None, 4])
def test_residual_block_starts_as_its_shortcut(bottleneck: int | None) -> None:
    x = torch.randn(2, 8, 6, 6).relu()
    block = ResidualBlock(8, bottleneck=bottleneck)
    assert torch.equal(block(x), x)
    assert not torch.equal(ResidualBlock(8, bottleneck=bottleneck, zero_gamma=False)(x), x)
    block(x).sum().backward()
    assert block.norm.weight.grad.abs().sum() > 0


def test_residual_block_is_its_parts() -> None:
    block = ResidualBlock(8, 12, stride=2, zero_gamma=False, activation="relu")
    x = torch.randn(4, 8, 6, 6)
    z = torch.nn.functional.batch_norm(block.conv(block.inner(x)), None, None, training=True)
    around = torch.nn.functional.batch_norm(block.shortcut[0](x), None, None, training=True)
    torch.testing.assert_close(block(x), (z + around).relu())
    assert block(x).shape == (4, 12, 3, 3)


def test_a_residual_block_trains() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(ConvBlock(1, 8, 3), ResidualBlock(8), ResidualBlock(8, 16, stride=2, bottleneck=4))
    head = torch.nn.Linear(16, 2)
    x, y = torch.randn(64, 1, 8, 8), torch.arange(64) % 2
    x[y == 1] += 0.5
    optimizer = torch.optim.SGD(batchnorm.parameter_groups(torch.nn.ModuleList([model, head]), 1e-4), lr=0.1)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(head(model(x).mean((2, 3))), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_refusals() -> None:
    for build in (
        lambda: ConvBlock(3, 4, 3, norm="between"),
        lambda: ConvBlock(3, 4, 3, dropout=1.0),
        lambda: ConvBlock(3, 4, 3, dimensions=4),
        lambda: LinearBlock(3, 4, dropout=-0.1),
        lambda: ResidualBlock(4, groups=2),
    ):
        with pytest.raises(ArgumentError, match="Mend"):
            build()
