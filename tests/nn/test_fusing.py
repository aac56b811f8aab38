"""``FusingBatchNorm*``: computed with what follows, and right whatever that is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import batchnorm
from batchnorm.activation import ACTIVATIONS, Activation
from batchnorm.nn._norm_call import watch
from nn.fusing_tools import agree, data, layers

FORMS = {
    "relu": [torch.relu, F.relu, Tensor.relu, torch.relu_, Tensor.relu_, lambda z: F.relu(z, True), torch.nn.ReLU()],
    "leaky_relu": [F.leaky_relu, lambda z: F.leaky_relu(z, inplace=True), F.leaky_relu_, torch.nn.LeakyReLU()],
    "relu6": [F.relu6],
    "hardtanh": [F.hardtanh, F.hardtanh_, torch.nn.Hardtanh(inplace=True)],
    "silu": [F.silu, lambda z: F.silu(z, inplace=True), torch.nn.SiLU()],
    "hardswish": [F.hardswish, torch.nn.Hardswish(inplace=True)],
    "gelu": [F.gelu, torch.nn.GELU()],
    "gelu_tanh": [lambda z: F.gelu(z, approximate="tanh"), torch.nn.GELU("tanh")],
    "sigmoid": [torch.sigmoid, Tensor.sigmoid, Tensor.sigmoid_, F.sigmoid, torch.nn.Sigmoid()],
    "tanh": [torch.tanh, Tensor.tanh, torch.tanh_, F.tanh, torch.nn.Tanh()],
    "elu": [F.elu, F.elu_, torch.nn.ELU(inplace=True)],
}


def test_every_activation_has_a_form_here():
    assert set(FORMS) == set(ACTIVATIONS) - {"identity"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "place"), [(name, i) for name, forms in FORMS.items() for i in range(len(forms))])
def test_an_activation_is_computed_with_the_norm(name, place, training):
    form = FORMS[name][place]
    agree(lambda norm, x, r: form(norm(x)), training, [(False, Activation(name))])


def test_an_activations_parameters_are_its_own():
    agree(lambda norm, x, r: F.leaky_relu(norm(x), 0.3), True, [(False, Activation("leaky_relu", negative_slope=0.3))])
    agree(
        lambda norm, x, r: F.hardtanh(norm(x), -0.5, max_val=0.7),
        True,
        [(False, Activation("hardtanh", min_val=-0.5, max_val=0.7))],
    )
    agree(lambda norm, x, r: F.elu(norm(x), alpha=0.4), True, [(False, Activation("elu", alpha=0.4))])


def in_place(norm, x, r):
    y = norm(x)
    y += r
    return F.relu(y)


SUMS = [
    lambda norm, x, r: torch.relu(norm(x) + r),
    lambda norm, x, r: torch.relu(r + norm(x)),
    lambda norm, x, r: torch.relu(torch.add(norm(x), r)),
    lambda norm, x, r: norm(x).add(r).relu_(),
    lambda norm, x, r: norm(x).add_(r).relu(),
    in_place,
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("place", range(len(SUMS)))
def test_a_sum_is_computed_with_the_norm(place, training):
    agree(SUMS[place], training, [(True, Activation("relu"))])


def test_a_sum_alone_and_views_and_dropouts_that_drop_nothing():
    relu, nothing = Activation("relu"), Activation("identity")
    agree(lambda norm, x, r: (norm(x) + r) * 2, True, [(True, nothing)])
    agree(lambda norm, x, r: torch.relu(F.dropout(norm(x) + r, 0.0)), True, [(True, relu)])
    agree(lambda norm, x, r: torch.relu(F.dropout2d(norm(x), 0.5, training=False)), True, [(False, relu)])
    agree(lambda norm, x, r: torch.relu(norm(x).flatten(1).view(3, 2, 50)), True, [(False, relu)])
    agree(lambda norm, x, r: torch.relu(norm(x).permute(0, 2, 3, 1).unflatten(0, (3, 1))), True, [(False, relu)])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "code",
    [
        lambda norm, x, r: norm(x) * 2,
        lambda norm, x, r: norm(x).mul_(2),
        lambda norm, x, r: torch.cat([norm(x), r]),
        lambda norm, x, r: torch.relu(norm(x) + r.mean()),
        lambda norm, x, r: torch.relu(norm(x) + r[:1]),
        lambda norm, x, r: torch.relu(torch.add(norm(x), r, alpha=2)),
        lambda norm, x, r: torch.relu(r.add_(norm(x))),
        lambda norm, x, r: torch.relu(norm(x) + r + r),
        lambda norm, x, r: torch.relu(norm(x) + 1.0),
        lambda norm, x, r: F.dropout(norm(x), 0.0) - r,
        lambda norm, x, r: norm(x).relu_().flatten(1)[:, ::2],
        lambda norm, x, r: torch.relu(norm(x).double() + r.double()).float(),
        lambda norm, x, r: torch.relu(norm(x) + r.double()).float(),
        lambda norm, x, r: F.prelu(norm(x), torch.tensor(0.1)),
        lambda norm, x, r: norm(x).clamp(min=0),
        lambda norm, x, r: torch.where(norm(x) > 0, r, x),
        lambda norm, x, r: norm(x).to(memory_format=torch.channels_last),
    ],
)
def test_anything_else_gets_the_norms_output(code, training):
    agree(code, training)


def read_before_and_after(norm, x, r):
    y = norm(x)
    z = torch.relu(y)
    return z + y.detach() + torch.sigmoid(y) * y


def in_place_then_read(norm, x, r):
    y = norm(x)
    torch.relu_(y)
    return y * r


def sum_in_place_then_read(norm, x, r):
    y = norm(x)
    y += r
    return torch.relu(y) + y


def sum_by_a_method_in_place(norm, x, r):
    y = norm(x)
    y.add_(r)
    return torch.relu(y)


def dropped(norm, x, r):
    torch.manual_seed(0)
    return F.dropout(norm(x), 0.5).relu()


def view_in_place_then_base(norm, x, r):
    y = norm(x)
    v = y.view(3, -1)
    v.relu_()
    return y * 2


def two_sums(norm, x, r):
    y = norm(x)
    return torch.relu(y + r) * torch.sigmoid(y + x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "code",
    [
        read_before_and_after,
        in_place_then_read,
        sum_in_place_then_read,
        sum_by_a_method_in_place,
        view_in_place_then_base,
        two_sums,
        dropped,
    ],
)
def test_several_readers_get_what_they_would_and_the_statistics_move_once(code, training):
    agree(code, training)


def test_two_norms_and_their_sum():
    """A shortcut that is a norm itself: one of the two is computed with the sum."""
    found = []
    for kind in (batchnorm.FusingBatchNorm2d, batchnorm.BatchNorm2d):
        main, shortcut, x = kind(4), kind(4), data().requires_grad_()
        with watch() as seen:
            y = torch.relu(main(x) + shortcut(x * x))
        y.mul(data(3)).sum().backward()
        found.append([y.detach(), x.grad, *main.buffers(), *shortcut.buffers()])
        if kind is batchnorm.FusingBatchNorm2d:
            assert [(layer is main, residual, activation.name) for layer, residual, activation in seen] == [
                (False, False, "identity"),
                (True, True, "relu"),
            ]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_calls_that_wait_move_the_statistics_in_the_order_of_the_calls():
    fusing, plain = layers(momentum=0.5)
    for layer in (fusing, plain):
        first, second = layer(data(1)), layer(data(2) + 3)
        torch.relu(second), torch.relu(first)
    for ours, theirs in zip(fusing.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_result_that_nobody_reads_moves_the_statistics():
    fusing, plain = layers()
    fusing(data()), plain(data())
    for ours, theirs in zip(fusing.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_norm_takes_the_output_of_one_that_waits_as_input_and_as_residual():
    """Found by converting: our operators were handed a tensor without values."""
    ours = [batchnorm.FusingBatchNorm2d(4), batchnorm.FusingBatchNorm2d(4), batchnorm.BatchNormAct2d(4)]
    plain = [torch.nn.BatchNorm2d(4) for _ in ours]
    x = torch.randn(8, 4, 5, 5)
    results = []
    for first, second, third in (ours, plain):
        input = x.clone().requires_grad_()
        waits = first(input)
        fused = third is ours[2]
        output = third(second(waits), waits) if fused else torch.relu(third(second(waits)) + waits)
        results.append((output, torch.autograd.grad(output.square().sum(), input)[0], first.running_var))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
