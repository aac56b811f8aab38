"""What only the ghost layers do; the contract holds for them too."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, reference
from batchnorm.errors import ArgumentError
from batchnorm.functional import ghost_batch_norm
from tolerance import assert_three_way, double


def truth(layer: torch.nn.Module, x: Tensor, dy: Tensor, mask: Tensor | None, activation: str) -> list[np.ndarray]:
    weight, bias = double(layer.weight), double(layer.bias)
    valid = None if mask is None else mask.numpy()
    arguments = {"activation": activation, "mask": valid, "ghost_size": layer.ghost_size, "eps": layer.eps}
    output, kept = reference.ghost_forward(double(x), weight, bias, **arguments)
    gradients = reference.ghost_backward(double(dy), kept)
    return [output, gradients.x, gradients.weight, gradients.bias]


def torch_by_parts(layer: torch.nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    parts = x.tensor_split(-(-len(x) // layer.ghost_size))
    weight, bias = layer.weight, layer.bias
    output = torch.cat([torch.nn.functional.batch_norm(part, None, None, weight, bias, True) for part in parts])
    return [output, *torch.autograd.grad(output, [x, weight, bias], dy)]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    samples=st.integers(2, 40),
    channels=st.integers(1, 20),
    side=st.integers(2, 6),
    ghost_size=st.integers(1, 50),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 2**20),
    channels_last=st.booleans(),
)
def test_no_further_from_the_reference_than_torch_by_parts(
    samples, channels, side, ghost_size, dtype, seed, channels_last
):
    layer = GhostBatchNorm2d(channels, ghost_size=ghost_size, dtype=torch.float64 if dtype == torch.float64 else None)
    torch.manual_seed(seed)
    x = (2 * torch.randn(samples, channels, side, side, dtype=torch.float64) + 3).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_()
    dy = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    output = layer(x)
    ours = [output, *torch.autograd.grad(output, [x, layer.weight, layer.bias], dy)]
    for what, our, their, true in zip(
        ("output", "input", "weight", "bias"),
        ours,
        torch_by_parts(layer, x, dy),
        truth(layer, x, dy, None, "identity"),
        strict=True,
    ):
        # A sum near 0 is known to a rounding of what is summed.
        assert_three_way(what, our, their, true, samples**0.5 * side if what in ("weight", "bias") else 0.0)


@pytest.mark.parametrize("momentum", [0.2, None])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_running_statistics_move_once_a_part_and_count_parts(momentum, masked):
    layer = GhostBatchNorm1d(3, momentum=momentum, ghost_size=4, dtype=torch.float64)
    mean, var, seen = np.zeros(3), np.ones(3), 0
    for step in range(3):
        x = 2 * torch.randn(10 + step, 3, 2, dtype=torch.float64) + step
        mask = torch.rand(10 + step, 2) < 0.6 if masked else None
        layer(x, mask=mask)
        for group in reference.ghost_batches(10 + step, 4):
            part = reference.moments(double(x)[group], None if mask is None else mask.numpy()[group])
            if part.count < 2:
                continue
            seen += 1
            mean, var = reference.update_running(mean, var, part, momentum or 1 / seen)
    np.testing.assert_allclose(double(layer.running_mean), mean, rtol=1e-12 if momentum else 1e-6)
    np.testing.assert_allclose(double(layer.running_var), var, rtol=1e-12 if momentum else 1e-6)
    assert int(layer.num_batches_tracked) == seen


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_part_that_is_not_finite_is_left_out_by_itself(bad):
    x = torch.randn(12, 3, 2)
    poisoned = x.clone()
    poisoned[5, 1, 0] = bad
    layer, without = GhostBatchNorm1d(3, ghost_size=4), GhostBatchNorm1d(3, ghost_size=4)
    output = layer(poisoned)
    without(torch.cat([x[:4], x[8:]]))
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, without.get_buffer(name)), name
    assert torch.isfinite(output[:4]).all()
    assert torch.isfinite(output[8:]).all()
    assert not torch.isfinite(output[4:8, 1]).any()


def test_parts_with_one_valid_value_and_with_none():
    layer = GhostBatchNorm1d(3, ghost_size=4, bias=False)
    x, mask = torch.randn(12, 3), torch.zeros(12, dtype=torch.bool)
    mask[0] = mask[8:] = True
    output = layer(x, mask=mask)
    assert (output[:8] == 0).all()
    assert int(layer.num_batches_tracked) == 1
    only = GhostBatchNorm1d(3, ghost_size=4, bias=False)
    torch.testing.assert_close(only(x[8:]), output[8:])
    torch.testing.assert_close(only.running_var, layer.running_var)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_batch_of_one_part_is_the_plain_layers(activation):
    ghost = GhostBatchNorm2d(4, ghost_size=8, activation=activation)
    plain = batchnorm.BatchNormAct2d(4, activation=activation)
    for samples in (8, 5, 0):
        x = torch.randn(samples, 4, 3, 3)
        assert torch.equal(ghost(x), plain(x))
    for name, buffer in plain.named_buffers():
        assert torch.equal(ghost.get_buffer(name), buffer), name


def test_evaluation_is_the_plain_layers():
    for tracked in (True, False):
        ghost = GhostBatchNorm2d(4, ghost_size=2, track_running_stats=tracked)
        plain = torch.nn.BatchNorm2d(4, track_running_stats=tracked)
        ghost(torch.randn(6, 4, 3, 3))
        plain.load_state_dict(ghost.state_dict())
        x = torch.randn(6, 4, 3, 3)
        torch.testing.assert_close(ghost.eval()(x), plain.eval()(x))


def test_ghost_size_is_shown_kept_and_checked():
    for layer in (GhostBatchNorm3d(2, ghost_size=7), GhostBatchNorm3d(2, ghost_size=7, activation="relu")):
        assert "ghost_size=7" in repr(layer)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        for copy in (pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
            assert copy.ghost_size == 7
            assert isinstance(copy, torch.nn.BatchNorm3d) == isinstance(layer, torch.nn.BatchNorm3d)
    for wrong in (0, -3, 2.5):
        with pytest.raises(ArgumentError, match="ghost_size"):
            GhostBatchNorm1d(2, ghost_size=wrong)
        with pytest.raises(ArgumentError, match="ghost_size"):
            ghost_batch_norm(torch.zeros(4, 2), None, None, training=True, ghost_size=wrong)


class Called(torch.nn.Module):
    """A layer with what it is called with, which checkpoints and transforms do not hand on."""

    def __init__(self, layer: torch.nn.Module, **arguments: Tensor | None) -> None:
        super().__init__()
        self.layer, self.arguments = layer, arguments

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, **self.arguments)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_checkpointing_unpacks_once_and_moves_the_buffers_once(reentrant, masked):
    x = torch.randn(10, 3, 4, requires_grad=True)
    mask = torch.rand(10, 4) < 0.7 if masked else None
    with_it, without = (Called(GhostBatchNorm1d(3, ghost_size=4, activation="silu"), mask=mask) for _ in range(2))
    expected = torch.autograd.grad(without(x).square().sum(), [x])[0]
    checkpoint(with_it, x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    for name, buffer in without.named_buffers():
        assert torch.equal(with_it.get_buffer(name), buffer), name


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("activation", [None, "silu", "leaky_relu"])
def test_derivatives_of_first_and_second_order(activation, masked):
    x, residual = torch.randn(2, 7, 2, 2, dtype=torch.float64).unbind()
    mask = torch.rand(7, 2) < 0.8 if masked else None
    weight, bias = torch.rand(2, dtype=torch.float64) + 0.5, torch.randn(2, dtype=torch.float64)

    def function(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        arguments = {"ghost_size": 3, "activation": activation, "residual": residual, "mask": mask}
        return ghost_batch_norm(x, None, None, weight, bias, True, **arguments)

    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias, residual)]
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_gradients_in_batches():
    for format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(6, 3, 2, 2).contiguous(memory_format=format).requires_grad_()
        residual = torch.randn(6, 3, 2, 2).requires_grad_()
        output = GhostBatchNorm2d(3, ghost_size=2, activation="relu")(x, residual)
        several = torch.randn(3, *output.shape)
        at_once = torch.autograd.grad(output, [x, residual], several, is_grads_batched=True, retain_graph=True)
        for place, dy in enumerate(several):
            for found, one in zip(
                at_once, torch.autograd.grad(output, [x, residual], dy, retain_graph=True), strict=True
            ):
                torch.testing.assert_close(found[place], one)


def by_parts(x: Tensor, weight: Tensor) -> Tensor:
    parts = [torch.nn.functional.batch_norm(part, None, None, weight, None, True) for part in x.tensor_split(3)]
    return torch.cat(parts).relu()


def ghost(x: Tensor, weight: Tensor) -> Tensor:
    return ghost_batch_norm(x, None, None, weight, None, True, ghost_size=3, activation="relu")


def test_transforms():
    x, v = torch.randn(2, 8, 2, 3, 2, dtype=torch.float64).transpose(2, 4).unbind()  # in neither usual format
    weight = torch.rand(2, dtype=torch.float64)
    for ours, theirs in (
        (torch.func.jvp(ghost, (x, weight), (v, weight)), torch.func.jvp(by_parts, (x, weight), (v, weight))),
        *(
            (
                transform(lambda x: ghost(x, weight).sin().sum())(x),
                transform(lambda x: by_parts(x, weight).sin().sum())(x),
            )
            for transform in (torch.func.grad, torch.func.jacrev)
        ),
        *(
            (torch.func.vmap(f[0], dims)(*a), torch.func.vmap(f[1], dims)(*a))
            for f, dims, a in (
                ((ghost, by_parts), (0, None), (torch.stack([x, v]), weight)),
                ((ghost, by_parts), (None, 0), (x, torch.stack([weight, weight + 1]))),
            )
        ),
    ):
        torch.testing.assert_close(ours, theirs)


def test_strides_on_the_recorded_road():
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3), (3, 2, 1, 0)):
        x = torch.randn(6, 6, 6, 6).permute(order)
        mean, var = torch.zeros(6), torch.ones(6)
        output = ghost_batch_norm(x, mean, var, training=True, momentum=torch.tensor(0.1), ghost_size=2)
        assert output.stride() == torch.empty_like(x).stride()
        own = torch.zeros(6), torch.ones(6)
        assert torch.equal(output, ghost_batch_norm(x, *own, training=True, momentum=0.1, ghost_size=2))
        torch.testing.assert_close((mean, var), own)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_compiled_without_a_break(masked):
    layer = GhostBatchNorm2d(3, ghost_size=4, activation="silu")
    twin = GhostBatchNorm2d(3, ghost_size=4, activation="silu")
    x = torch.randn(10, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    mask = torch.rand(10, 4, 4) < 0.7 if masked else None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(x, mask=mask), twin(x, mask=mask)
    torch.testing.assert_close(ours, theirs)
    assert ours.stride() == theirs.stride()
    dy = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, x, dy), torch.autograd.grad(theirs, x, dy))
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), buffer, msg=name)


def test_lean_around_a_ghost_layer():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1),
        batchnorm.BatchNormAct2d(4),  # its output, which lean computes again, is the ghost layer's input
        GhostBatchNorm2d(4, ghost_size=2, activation="relu"),
        torch.nn.Conv2d(4, 3, 3),
    )
    x = torch.randn(6, 3, 5, 5)
    found = []
    for watched in (False, True):
        model.zero_grad()
        if watched:
            with batchnorm.lean():
                output = model(x)
        else:
            output = model(x)
        output.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(found[0], found[1])


def test_a_sink_gets_the_average_of_the_parts():
    class Scratch:
        def buffers(self, input, mask, mean, var, seen):
            self.found = torch.zeros_like(mean), torch.zeros_like(var), torch.zeros_like(seen)
            return self.found

    layer = GhostBatchNorm1d(3, ghost_size=4)
    layer._sink = scratch = Scratch()
    x = torch.randn(12, 3)
    layer(x)
    mean, var, seen = scratch.found
    torch.testing.assert_close(mean, torch.stack([part.mean(0) for part in x.split(4)]).mean(0))
    torch.testing.assert_close(var, torch.stack([part.var(0) for part in x.split(4)]).mean(0))
    assert int(seen) == 3
    assert int(layer.num_batches_tracked) == 0
