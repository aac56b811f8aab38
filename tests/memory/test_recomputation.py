"""What outputs are computed again from: never from what was modified, or is another tensor at an old address."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from batchnorm.functional import batch_norm
from batchnorm.memory import lean
from batchnorm.ops import autograd, eager
from memory.lean_tools import CONV, Counting, is_alive, norm


@pytest.mark.parametrize("what", ["input", "residual", "mask"])
def test_what_it_is_computed_from_must_not_have_been_modified(what: str, x: Tensor) -> None:
    layer = norm(activation="relu")
    mask = torch.ones(4, 6, 5, dtype=torch.bool)
    with lean(report=True) as report:
        h, added = x.sin(), x.cos()
        kept = added.square()
        loss = CONV(layer(h, added, mask)).sum()
    assert report is not None
    assert report.recipes == 1
    del kept
    tensors = {"input": h, "residual": added, "mask": mask}
    version = tensors[what]._version
    with torch.no_grad():
        tensors[what].mul_(2) if what != "mask" else mask.logical_not_()
    with pytest.raises(
        RuntimeError,
        match=rf"one of the variables needed for gradient computation has been modified by an inplace operation: .*"
        rf" the {what} of a batch norm .* is at version {version + 1}; expected version {version} instead",
    ):
        loss.backward()


@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
@pytest.mark.parametrize("what", ["weight", "bias"])
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("through_the_norm", [True, False])
def test_a_parameter_modified_is_refused_where_the_norm_needs_it(
    what: str, activation: str, has_residual: bool, through_the_norm: bool, x: Tensor
) -> None:
    """Without an activation, or with its bits, nothing needs the bias: accumulated gradients may step in between."""
    found = []
    for is_lean in (True, False):
        layer = norm(activation=activation)
        with lean(report=True) if is_lean else nullcontext() as report:
            added = x.cos()
            loss = added.square().sum()
            loss = loss + CONV(layer(x.sin(), added if has_residual else None)).square().sum()
        assert report is None or report.recipes == 1
        with torch.no_grad():
            getattr(layer, what).add_(1)
        try:
            gradients: tuple[Tensor | str, ...] = torch.autograd.grad(loss, (x, CONV.weight)[not through_the_norm :])
        except RuntimeError as error:
            gradients = (str(error).partition(" Hint")[0],)
        found.append(gradients)
    if what == "weight" or not through_the_norm:
        assert isinstance(found[1][0], str) == through_the_norm
    if isinstance(found[1][0], str):
        assert found[0] == found[1]
    else:
        torch.testing.assert_close(*found)


def test_what_others_keep_must_not_have_been_modified(x: Tensor) -> None:
    """With hooks in between, autograd itself does not check."""
    messages = []
    for is_lean in (True, False):
        with lean() if is_lean else nullcontext():
            y = x.exp()
            loss = y.sum()
        y.detach().mul_(2)
        with pytest.raises(RuntimeError) as raised:
            loss.backward()
        messages.append(str(raised.value))
    # The hint at the end is worded by the version of torch.
    ours, theirs = (message.replace("Backward0", "").partition(" Hint")[0] for message in messages)
    assert ours == theirs


def test_two_who_need_it_at_once_share_it(x: Tensor, monkeypatch: pytest.MonkeyPatch, no_collector: None) -> None:
    kernel = Counting()
    monkeypatch.setattr(autograd, "kernels", lambda *_: kernel)
    with lean():
        y = batch_norm(x, None, None, training=True, activation="relu")
        loss = (y * y.flatten(2).unflatten(2, (6, 5))).sum() + CONV(y).sum()
    del y
    loss.backward(retain_graph=True)
    assert len(kernel.made) == 2  # once for both factors, once for the convolution
    assert not any(is_alive(made) for made in kernel.made)
    first = x.grad
    again = torch.autograd.grad(loss, x, create_graph=True)[0]
    assert torch.equal(again, first)  # type: ignore[arg-type]


def test_a_chain_is_computed_once(x: Tensor, monkeypatch: pytest.MonkeyPatch, no_collector: None) -> None:
    """Not each member anew for every output further up: 5 and not 1 + 2 + 3 + 4 + 5."""
    kernel = Counting()
    monkeypatch.setattr(autograd, "kernels", lambda *_: kernel)
    with lean(report=True) as report:
        y = batch_norm(x.sin(), None, None, training=True, activation="relu")
        for _ in range(4):
            y = batch_norm(CONV(y), None, None, training=True, activation="relu", residual=y)
        loss = CONV(y).sum()
    del y
    assert report is not None
    assert report.recipes == 5
    for times in (1, 2):
        loss.backward(retain_graph=True)
        assert len(kernel.made) == 5 * times
        assert not any(is_alive(made) for made in kernel.made)


class _WritesIntoWhatItKept(torch.autograd.Function):
    """Its gradient, 3 · y, is made in the memory of y."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y.square() * 1.5

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return y.mul_(3).mul_(grad_output)  # type: ignore[no-any-return]


@pytest.mark.parametrize("is_chained", [True, False])
def test_what_was_made_and_written_to_is_made_again(is_chained: bool, x: Tensor) -> None:
    """A chain holds y when it has been written to; without one, the gradient is its memory, still alive."""
    layer, gradients = norm(activation="silu"), []
    for writes in (True, False):
        with lean(report=True) if writes else nullcontext() as report:
            y = layer(x.sin())
            after = layer(x.cos(), residual=y).sin() if is_chained else y.cos()
            loss = after.sum() + (_WritesIntoWhatItKept.apply(y) if writes else y.square() * 1.5).sum()
        del y, after
        assert report is None or report.recipes == 1 + is_chained
        gradients.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("part", [slice(None), slice(1, 3)])
def test_what_was_handed_out_twice_is_one_memory_with_one_version(part: slice, x: Tensor) -> None:
    layer = norm(activation="silu")
    with lean():
        y = layer(x.sin())
        a, b, c = y.sin(), y[part].cos(), y.cos()
    del y
    first, second = a.grad_fn._saved_self, b.grad_fn._saved_self  # type: ignore[union-attr]
    assert first.untyped_storage()._cdata == second.untyped_storage()._cdata
    expected = first.detach().clone()
    second.detach().mul_(2)
    assert torch.equal(c.grad_fn._saved_self, expected)  # type: ignore[union-attr]


def test_what_is_kept_anyway_is_not_computed_again(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Counting()
    monkeypatch.setattr(autograd, "kernels", lambda *_: kernel)
    with lean():
        added = x.cos()
        y = batch_norm(x.sin(), None, None, training=True, activation="relu", residual=added)
        loss = CONV(y).sum()  # keeps y: nobody keeps the residual
        loss = loss + added.square().sum() + y.square().sum()
    loss.backward()
    assert not kernel.made


def test_a_residual_modified_before_others_keep_it_makes_no_recipe(x: Tensor) -> None:
    """A derivative that is one bit does not need the residual, so that this is right without ``lean``."""
    layer, gradients = norm(), []
    for is_lean in (True, False):
        with lean(report=True) if is_lean else nullcontext() as report:
            added = x.cos()
            y = layer(x.sin(), added)
            added.mul_(2)
            loss = added.square().sum() + CONV(y).square().sum()
        gradients.append(torch.autograd.grad(loss, (x, CONV.weight)))
        if report is not None:
            assert report.reasons == {"nothing else keeps the residual": 1}
    torch.testing.assert_close(*gradients)


def test_a_residual_modified_before_it_is_added_makes_no_recipe(x: Tensor) -> None:
    """It is a norm's output no longer."""
    layer, gradients = norm(), []
    for is_lean in (True, False):
        with lean(report=True) if is_lean else nullcontext() as report:
            added = layer(x.cos()).mul_(2)
            loss = CONV(layer(x.sin(), added)).square().sum()
        gradients.append(torch.autograd.grad(loss, (x, CONV.weight)))
        if report is not None:
            assert report.reasons == {"nothing else keeps the residual": 1}
    torch.testing.assert_close(*gradients)


def test_a_view_of_another_dtype_is_kept(x: Tensor) -> None:
    layer, gradients = norm(), []
    for is_lean in (True, False):
        with lean() if is_lean else nullcontext():
            pairs = torch.view_as_complex(layer(x[..., :2].contiguous().sin()))
            loss = (pairs * pairs).abs().sum()
        gradients.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(*gradients)


def test_autocast_is_as_it_was_in_the_forward_pass(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Counting()
    monkeypatch.setattr(autograd, "kernels", lambda *_: kernel)
    for forward in (True, False):
        kernel.autocast.clear()
        with torch.autocast("cpu", torch.float16, enabled=forward), lean():
            loss = batch_norm(x, None, None, training=True).square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=not forward):
            loss.backward()
        assert len(kernel.autocast) == 1
        assert kernel.autocast[0][0] == forward
        assert not forward or kernel.autocast[0][1] == torch.float16


def test_an_output_that_shares_its_memory_is_kept(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Counting()

    def train(input: Tensor, *arguments: object) -> tuple[Tensor, ...]:
        output, *found = eager.train(input, *arguments)  # type: ignore[arg-type]
        return torch.cat([output, output])[len(output) :], *found

    monkeypatch.setattr(kernel, "train", train)
    monkeypatch.setattr(autograd, "kernels", lambda *_: kernel)
    with lean(report=True) as report:
        CONV(batch_norm(x, None, None, training=True)).sum().backward()
    assert report is not None
    assert report.recipes == 0


def test_a_recomputation_moves_no_buffers(x: Tensor) -> None:
    layer = norm()
    with lean():
        loss = CONV(layer(x)).sum()
    before = [buffer.clone() for buffer in layer.buffers()]
    loss.backward()
    assert all(torch.equal(*pair) for pair in zip(before, layer.buffers(), strict=True))


def test_the_forward_pass_s_statistics_are_used(x: Tensor) -> None:
    """In evaluation a training step in between moves the running buffers."""
    layer = norm().eval()
    gradients = []
    for is_lean in (True, False):
        with lean() if is_lean else nullcontext():
            loss = CONV(layer(x)).square().sum()
        layer.running_mean.add_(1)
        gradients.append(torch.autograd.grad(loss, (x, CONV.weight)))
        layer.running_mean.sub_(1)
    torch.testing.assert_close(*gradients)


def _overwrite(memory: Any, values: Tensor) -> Tensor:
    memory[:] = values.numpy()
    return torch.from_numpy(memory)


def test_an_address_that_comes_again_is_another_tensor(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is handed out anew within microseconds, to tensors of the same size above all."""
    memory = np.empty(x.shape, dtype=np.float32)
    kernel = Counting()

    def train(*arguments: object) -> tuple[Tensor, ...]:
        output, *found = eager.train(*arguments)  # type: ignore[arg-type]
        return _overwrite(memory, output), *found

    monkeypatch.setattr(kernel, "train", train)
    monkeypatch.setattr(autograd, "kernels", lambda *_: kernel)
    with lean(report=True) as report:
        y = batch_norm(x, None, None, training=True)
        first = CONV(y)
        y_address = y.data_ptr()
        del y
        memory.fill(2.0)
        t = torch.from_numpy(memory).requires_grad_()
        second = CONV(t).sum()
    assert t.data_ptr() == y_address
    assert report is not None
    assert report.recipes == 1
    found = torch.autograd.grad(second, CONV.weight)[0]
    assert torch.equal(found, torch.autograd.grad(CONV(t).sum(), CONV.weight)[0])
    first.sum().backward()
