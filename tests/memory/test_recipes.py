"""What ``lean`` keeps and what it does not: by storages that are alive or gone, and by bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from batchnorm.bench.kept import bytes_kept
from batchnorm.memory import lean
from batchnorm.memory.session import sessions
from memory.lean_tools import CONV, is_alive, norm, watch


def test_the_output_is_gone_and_the_input_is_not(x: Tensor, no_collector: None) -> None:
    for is_lean in (True, False):
        with lean() if is_lean else nullcontext():
            h = x.sin()
            y = norm()(h)
            z = CONV(y)
        references = watch(h), watch(y)
        del h, y
        assert [is_alive(r) for r in references] == [True, not is_lean]
        z.sum().backward()
        assert not any(is_alive(r) for r in references)


def test_a_graph_that_is_dropped_leaves_nothing(x: Tensor, no_collector: None) -> None:
    references = []

    def forward() -> Tensor:
        h = x.sin()
        y = norm(activation="silu")(h, x.cos())
        z = CONV(y).exp()  # exp keeps its own output: whoever holds it with its node makes a circle
        references.extend(watch(t) for t in (h, y, z))
        return z.sum()

    with lean():
        forward()
        assert not any(is_alive(r) for r in references)
        loss = forward()
    del loss
    assert not any(is_alive(r) for r in references)
    with lean():
        loss = forward()
    loss.backward(retain_graph=True)
    assert not is_alive(references[-2])  # nor does what was computed again outlive its use
    del loss
    assert not any(is_alive(r) for r in references)


def test_bytes_are_those_that_the_bench_counts(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), norm(), CONV, norm(), nn.Flatten(), nn.Linear(240, 3))
    images = x.detach()
    expected = bytes_kept(lambda: model(images), (*model.parameters(), *model.buffers()))
    with lean(report=True) as report:
        model(images)
    size = images.numel() * 4
    assert report is not None
    assert report.kept_bytes_without == expected == 5 * size
    assert (report.kept_bytes, report.recipes) == (3 * size, 2)
    report.kept_bytes_without = 10_000_000
    assert str(report).startswith("11.5 kB kept, 10.0 MB without")
    report.kept_bytes_without = expected
    assert str(report) == "11.5 kB kept, 19.2 kB without lean (0.60); computed again: 2"


class Blocks(nn.Module):
    """Residual blocks: each output is the next convolution's input and the next residual."""

    def __init__(self, blocks: int, activation: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(blocks + 1))
        self.norms = nn.ModuleList(norm(activation=activation) for _ in range(blocks + 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.convs[0](x))
        for conv, layer in zip(self.convs[1:], self.norms[1:], strict=True):
            y = layer(conv(y), residual=y)
        return y


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(("blocks", "whole"), [(5, 0), (6, 1), (11, 1), (12, 2)])
def test_a_chain_of_residuals_ends_after_four(blocks: int, whole: int, activation: str, x: Tensor) -> None:
    """The last block's output is kept by nobody; of the others each sixth is kept whole."""
    model = Blocks(blocks, activation)
    gradients = []
    for is_lean in (True, False):
        model.zero_grad()
        with lean(report=True) if is_lean else nullcontext() as report:
            loss = model(x).sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        if report is not None:
            assert report.recipes == blocks - whole
            assert sum(report.reasons.values()) == whole
            size, bits = x.numel() * 4, x.numel() // 8 if activation == "relu" else 0
            # The input of each norm and conv, x being a leaf; bits for each norm with a residual.
            assert report.kept_bytes_without == (2 * blocks + 1) * size + blocks * bits
            assert report.kept_bytes == (blocks + 1 + whole) * size + blocks * bits
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_residual_that_nothing_keeps_costs_as_much_as_the_output(x: Tensor, no_collector: None) -> None:
    def kept(activation: str, keep_residual: bool) -> tuple[int, dict[str, int]]:
        with lean(report=True) as report:
            h, added = x.sin(), x * 2
            loss = added.square().sum() if keep_residual else torch.zeros(())
            loss = loss + CONV(norm(activation=activation)(h, added)).sum()
        assert report is not None
        del h, added
        loss.backward()
        return report.recipes, dict(report.reasons)

    assert kept("relu", False) == (0, {"nothing else keeps the residual": 1})
    assert kept("relu", True) == (1, {})
    assert kept("silu", False) == (1, {})  # its derivative asks for the residual, so the norm itself keeps it


def test_norm_after_norm(x: Tensor) -> None:
    """What the second one keeps is the first one's output."""
    with lean(report=True) as report:
        loss = CONV(norm()(norm(activation="silu")(x.sin()))).sum()
    assert report is not None
    assert (report.recipes, report.kept_bytes) == (2, x.numel() * 4)
    loss.backward()


def test_kept_as_it_is(x: Tensor) -> None:
    frozen = norm().requires_grad_(False)
    data = x.detach()

    def modified() -> Tensor:
        return CONV(norm()(x.sin()).mul_(2))

    def modified_between() -> Tensor:
        y = norm()(x.sin())
        return CONV(torch.relu_(y)) + y

    cases: list[tuple[Callable[[], Tensor], str]] = [
        (lambda: CONV(frozen(data)), "no gradient flows through the norm, so nothing keeps its input"),
        (lambda: CONV(frozen.eval()(data)), "no gradient flows through the norm, so nothing keeps its input"),
        (lambda: CONV(norm()(x).detach()), "kept by what passes no gradient on to the norm"),
        (modified, "modified in place before it was kept"),
        (modified_between, "modified in place before it was kept"),
    ]
    for forward, reason in cases:
        found = []
        for is_lean in (True, False):
            CONV.zero_grad()
            with lean(report=True) if is_lean else nullcontext() as report:
                forward().square().sum().backward()
            assert CONV.weight.grad is not None
            found.append(CONV.weight.grad.clone())
            if report is not None:
                assert (report.recipes, dict(report.reasons)) == (0, {reason: 1})
        assert torch.equal(*found)


def _conjugate(x: Tensor) -> Tensor:
    return torch.view_as_complex(x).conj()


def _follows(y: Tensor, layer: nn.Module) -> Tensor:
    z = _conjugate(y).imag  # a negative view of y
    return (z * z.sin()).sum() + y.exp().sum()


def _follows_conjugate(y: Tensor, layer: nn.Module) -> Tensor:
    z = _conjugate(y)
    return (z * z.abs() * z).real.sum()


def _is_input(h: Tensor, layer: nn.Module) -> Tensor:
    loss = (h * h).sum()
    return loss + CONV(layer(_conjugate(h).imag[..., None])).square().sum()


def _is_residual(h: Tensor, layer: nn.Module) -> Tensor:
    loss = (h * h).sum()
    return loss + CONV(layer(h[..., :1].cos(), residual=_conjugate(h).imag[..., None])).square().sum()


def _is_kept_as_a_negative_view_alone(h: Tensor, layer: nn.Module) -> Tensor:
    z = _conjugate(h).imag
    return z.sin().sum() + CONV(layer(h * 3, residual=h)).square().sum()


@pytest.mark.parametrize(
    ("forward", "normed", "recipes"),
    [
        (_follows, True, 0),
        (_follows_conjugate, True, 0),
        (_is_input, False, 0),
        (_is_residual, False, 0),
        (_is_residual, True, 1),
        (_is_kept_as_a_negative_view_alone, False, 0),
    ],
)
def test_negative_and_conjugate_views_keep_their_sign(
    forward: Callable[[Tensor, nn.Module], Tensor], normed: bool, recipes: int, x: Tensor
) -> None:
    """Memory, size and strides do not tell them from what they are views of."""
    first, layer, gradients = norm(), norm(activation="relu"), []
    for is_lean in (True, False):
        with lean(report=True) if is_lean else nullcontext() as report:
            h = x[..., :2].contiguous() * 2
            loss = forward(first(h) if normed else h, layer)
        gradients.append(torch.autograd.grad(loss, x)[0])
        if report is not None:
            assert report.recipes == recipes
            assert ("a negative or conjugate view" in report.reasons) == (
                forward is not _is_kept_as_a_negative_view_alone
            )
    torch.testing.assert_close(*gradients)


def test_what_is_remembered_is_bounded(x: Tensor) -> None:
    layer = norm()
    with lean():
        session = sessions[threading.get_ident()]
        for _ in range(1000):
            CONV(layer(x.sin()))
        assert len(session._storages) < 1000
    assert not session._storages
    assert not sessions
