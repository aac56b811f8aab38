"""``torch.func``, forward mode and second derivatives, all against float64 arithmetic that torch differentiates."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vmap,
)

import batchnorm
from batchnorm.activation import ACTIVATIONS
from batchnorm.errors import ArgumentError
from batchnorm.functional import batch_norm

D = torch.float64


@pytest.fixture
def values() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(5, 3, 4, dtype=D), torch.randn(3, dtype=D), torch.randn(3, dtype=D)


def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A scalar that weighs every output differently: a plain sum of standardised values has no gradient."""

    def scalar(*arguments: Tensor) -> Tensor:
        output = function(*arguments)
        weights = torch.linspace(-1, 1, output.numel(), dtype=D).view(output.shape)
        return (output * weights).sum()

    return scalar


def ours(name: str) -> Callable[..., Tensor]:
    def function(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        return batch_norm(x, None, None, weight, bias, training=True, activation=name, residual=residual)

    return function


def plain(name: str) -> Callable[..., Tensor]:
    """The definition, in operations that torch differentiates itself."""

    def function(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = x.mean(dims, keepdim=True)
        var = (x - mean).square().mean(dims, keepdim=True)
        z = (x - mean) / (var + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)
        return batchnorm.Activation(name)(z if residual is None else z + residual)

    return function


def assert_all_close(a: object, b: object) -> None:
    for one, other in zip(torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("name", ["identity", "relu", "silu", "gelu", "elu"])
def test_first_and_second_derivatives(name: str, argument: int, values: tuple[Tensor, ...]) -> None:
    a, b = loss(ours(name)), loss(plain(name))
    assert_all_close(grad(a, argument)(*values), grad(b, argument)(*values))
    wanted = jacrev(jacrev(b, argument), argument)(*values)
    for nested in (
        hessian(a, argument),
        jacrev(jacrev(a, argument), argument),
        jacrev(jacfwd(a, argument), argument),
        # The jvp of an autograd.Function is silently wrong here.
        jacfwd(jacfwd(a, argument), argument),
    ):
        assert_all_close(nested(*values), wanted)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_forward_mode_against_finite_differences(name: str, values: tuple[Tensor, ...]) -> None:
    x, weight, bias = values
    residual = torch.randn_like(x)
    primals = (x, weight, bias, residual)
    tangents = tuple(torch.randn_like(t) for t in primals)
    step = 1e-6

    def moved(sign: int) -> Tensor:
        return ours(name)(*(p + sign * step * t for p, t in zip(primals, tangents, strict=True)))

    wanted = (moved(1) - moved(-1)) / (2 * step)
    found = jvp(ours(name), primals, tangents)[1]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    with forward_ad.dual_level():
        duals = (forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True))
        torch.testing.assert_close(forward_ad.unpack_dual(ours(name)(*duals)).tangent, found)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_with_everything(masked: bool, training: bool, values: tuple[Tensor, ...]) -> None:
    x, weight, bias = (t[:4].clone().requires_grad_() if t.dim() > 1 else t.requires_grad_() for t in values)
    residual = torch.randn_like(x, requires_grad=True)
    mask = torch.rand(4, 4) < 0.7 if masked else None
    statistics = (torch.randn(3, dtype=D), torch.rand(3, dtype=D) + 0.5)
    for name in ("relu", "tanh", "hardswish"):

        def function(*arguments: Tensor, name: str = name) -> Tensor:
            buffers = (s.clone() for s in statistics)
            x, weight, bias, residual = arguments
            return batch_norm(x, *buffers, weight, bias, training, activation=name, residual=residual, mask=mask)

        inputs = (x, weight, bias, residual)
        assert torch.autograd.gradcheck(
            function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
        )
        assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (1, 0, None)], ids=str)
def test_vmap(dims: tuple[int | None, ...]) -> None:
    x = torch.randn(2, 5, 3, 4, dtype=D) if dims[0] is not None else torch.randn(5, 3, 4, dtype=D)
    if dims[0] == 1:
        x = x.movedim(0, 1)
    weight, bias = (torch.randn(2, 3, dtype=D) if d is not None else torch.randn(3, dtype=D) for d in dims[1:])
    a, b = ours("silu"), plain("silu")
    arguments = (x, weight, bias)
    assert_all_close(vmap(a, dims)(*arguments), vmap(b, dims)(*arguments))
    each = (0, 1, 2)
    assert_all_close(vmap(grad(loss(a), each), dims)(*arguments), vmap(grad(loss(b), each), dims)(*arguments))
    assert_all_close(grad(loss(vmap(a, dims)), each)(*arguments), grad(loss(vmap(b, dims)), each)(*arguments))


def test_vmap_with_residual_and_a_mask_each() -> None:
    x, mask = torch.randn(3, 5, 2, 4, dtype=D), torch.rand(3, 5, 4) < 0.7

    def function(x: Tensor, mask: Tensor | None) -> Tensor:
        return batch_norm(x, None, None, training=True, activation="relu", residual=x.sin(), mask=mask)

    for masks, dims in ((mask, (0, 0)), (mask[0], (0, None)), (None, (0, None))):
        apart = [function(x[i], masks if dims[1] is None else masks[i]) for i in range(3)]
        assert_all_close(vmap(function, dims)(x, masks), torch.stack(apart))
        gradient = grad(lambda x, m=masks, d=dims: vmap(function, d)(x, m).cos().sum())(x)
        for i in range(3):
            one = masks if dims[1] is None else masks[i]
            assert_all_close(gradient[i], grad(lambda x, m=one: function(x, m).cos().sum())(x[i]))
        inner = vmap(grad(lambda x, m: function(x, m).cos().sum()), dims)(x, masks)
        assert_all_close(inner, gradient)


@pytest.mark.parametrize("layer", [batchnorm.BatchNorm2d, batchnorm.BatchNormAct2d], ids=lambda c: c.__name__)
def test_an_ensemble_is_its_models(layer: type[torch.nn.Module]) -> None:
    def build() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), layer(4), torch.nn.Flatten(), torch.nn.Linear(36, 1))

    models = [build().double() for _ in range(3)]
    x = torch.randn(6, 2, 5, 5, dtype=D)
    parameters, buffers = stack_module_state(models)

    def scalar(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(models[0], (parameters, buffers), (x,)).sin().sum()

    gradients = vmap(grad(scalar))(parameters, buffers)
    for i, model in enumerate(models):
        model(x).sin().sum().backward()
        for name, parameter in model.named_parameters():
            assert_all_close(gradients[name][i], parameter.grad)
        for name, buffer in model.named_buffers():
            assert_all_close(buffers[name][i], buffer)


def test_buffers_of_one_model_cannot_take_several() -> None:
    model = torch.nn.Sequential(batchnorm.BatchNorm1d(3))
    with pytest.raises(ArgumentError, match=r"0 \(BatchNorm1d\).*stack_module_state"):
        vmap(model)(torch.randn(2, 5, 3))
    model.eval()
    assert vmap(model)(torch.randn(2, 5, 3)).shape == (2, 5, 3)


def test_double_backward_moves_nothing() -> None:
    layer = batchnorm.BatchNorm1d(3)
    x = torch.randn(8, 3, requires_grad=True)
    gradient = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)[0]
    gradient.norm().backward()
    assert int(layer.num_batches_tracked) == 1
    assert torch.isfinite(x.grad).all()
