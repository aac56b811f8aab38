"""How a call finds its kernels, and what they may leave to autograd: by kernels that write down what they are asked."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.errors import BatchNormError, DtypeError, ShapeError, TooFewValuesError
from batchnorm.functional import batch_norm
from batchnorm.ops import autograd, eager, recorded

X = torch.randn(6, 3, 5)


class Kernels(ModuleType):
    """The plain kernels behind another layout of the bits, which refuse misfits by themselves if told to."""

    def __init__(self, checks: bool = False) -> None:
        super().__init__("kernels")
        self.CHECKS_TENSORS = checks
        self.calls: list[str] = []

    def train(self, input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        self.calls.append("train")
        if self.CHECKS_TENSORS and any(t is not None and t.shape != (input.shape[1],) for t in arguments[:2]):
            raise RuntimeError("a vector does not fit")
        if self.CHECKS_TENSORS and input.numel() == input.shape[1]:
            raise RuntimeError("one value a channel")
        *found, bits = eager.train(input, *arguments)
        return *found, ~bits

    def forward(self, input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        self.calls.append("forward")
        *found, bits = eager.forward(input, *arguments)
        return *found, ~bits

    def normalize(self, input: Tensor, *arguments: Any) -> Tensor:
        self.calls.append("normalize")
        return eager.normalize(input, *arguments)

    def backward(self, grad_output: Tensor, input: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
        self.calls.append("backward")
        *layer, bits, count, eps, activation, wanted = arguments
        bits = None if bits is None else ~bits
        return eager.backward(grad_output, input, *layer, bits, count, eps, activation, wanted)


def choose(monkeypatch: pytest.MonkeyPatch, kernels: Callable[..., ModuleType]) -> None:
    """Have every road ask ``kernels`` who serves."""
    for road in (autograd, recorded):
        monkeypatch.setattr(road, "kernels", kernels)


@pytest.fixture(params=[False, True], ids=["checked", "checking"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    double = Kernels(request.param)
    choose(monkeypatch, lambda input, mask, evaluation=False: double)
    return double


def leaves(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 3, 5), (3,), (3,), (6, 3, 5))
    return tuple(torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)  # type: ignore[return-value]


def test_one_call_each_way(kernels: Kernels) -> None:
    layer = batchnorm.BatchNormAct1d(3)
    layer(X).sum().backward()
    assert kernels.calls == ["train", "backward"]
    with torch.no_grad():
        layer(X)
        layer.eval()(X)
    assert kernels.calls == ["train", "backward", "train", "normalize"]
    assert int(layer.num_batches_tracked) == 2


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardtanh", "tanh"])
@pytest.mark.parametrize("training", [True, False])
def test_bits_are_read_by_who_wrote_them(
    kernels: Kernels, training: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First and second derivatives, whatever the layout."""

    def derivatives() -> tuple[Tensor, ...]:
        x, weight, bias, residual = inputs = leaves()
        statistics = (torch.zeros(3, dtype=x.dtype), torch.ones(3, dtype=x.dtype))
        output = batch_norm(x, *statistics, weight, bias, training, activation=name, residual=residual)
        weights = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)
        first = torch.autograd.grad((output * weights).sum(), inputs, create_graph=True)
        again = torch.autograd.grad(sum(g.sin().sum() for g in first), inputs, allow_unused=True)
        return (output, *first, *(torch.zeros(()) if g is None else g for g in again))

    found = derivatives()
    assert kernels.calls[0] == ("train" if training else "normalize")
    monkeypatch.undo()
    for one, other in zip(found, derivatives(), strict=True):
        torch.testing.assert_close(one, other)
    # The backward pass proper, which is not differentiated again.
    inputs = leaves()
    both = []
    for chosen in (lambda *_: kernels, lambda *_: eager):
        choose(monkeypatch, chosen)
        output = batch_norm(inputs[0], None, None, *inputs[1:3], True, activation=name, residual=inputs[3])
        monkeypatch.undo()
        both.append(torch.autograd.grad(output.sin().sum(), inputs))
    torch.testing.assert_close(*both)


def test_a_recomputation_hands_kernels_no_buffers(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass moves them; those that move buffers by themselves do not ask whether this is the second."""
    tracked: list[bool] = []

    def train(input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        tracked.append(arguments[4] is not None)
        return eager.train(input, *arguments)

    monkeypatch.setattr(kernels, "train", train)
    layer = batchnorm.BatchNormAct1d(3)
    checkpoint(layer, X.clone().requires_grad_(), use_reentrant=False).sum().backward()
    assert tracked == [True, False]


def test_a_tensor_as_momentum_goes_by_two_calls(kernels: Kernels) -> None:
    mean, var, momentum = torch.zeros(3), torch.ones(3), torch.tensor(0.25, requires_grad=True)
    x = X.clone().requires_grad_()
    batch_norm(x, mean, var, training=True, momentum=momentum, residual=x, activation="relu").sum().backward()
    assert kernels.calls == ["forward", "backward"]
    torch.testing.assert_close(mean, 0.25 * X.mean((0, 2)))
    assert not mean.requires_grad
    with torch.no_grad():
        batch_norm(x, mean, var, training=True, momentum=momentum)
    assert kernels.calls == ["forward", "backward", "forward"]


def test_a_buffer_that_requires_a_gradient_is_refused(kernels: Kernels) -> None:
    """As torch refuses to write into a leaf: a kernel that writes by itself would not notice."""
    for place in (0, 1):
        buffers = [torch.zeros(3), torch.ones(3)]
        buffers[place].requires_grad_()
        with pytest.raises(RuntimeError, match="leaf Variable"):
            batch_norm(X, *buffers, training=True)
        batch_norm(X, *buffers)
        assert "train" not in kernels.calls


def test_misfits_are_told_in_the_same_words_by_all_kernels(kernels: Kernels) -> None:
    mean, var, bad = torch.zeros(3), torch.ones(3), torch.ones(4)
    for kind, arguments in (
        (ShapeError, (X, mean, var, bad)),
        (TooFewValuesError, (X[:1, :, :1], mean, var)),
        (ShapeError, (X[0, 0], mean, var)),
    ):
        with pytest.raises(kind) as raised:
            batch_norm(*arguments, training=True)
        assert raised.value.mend
        assert torch.equal(mean, torch.zeros(3))
    # Each is only asked where nobody has looked before.
    assert kernels.calls == (["train", "train"] if kernels.CHECKS_TENSORS else [])


def test_what_kernels_refuse_and_the_checks_do_not_is_raised_as_it_is(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(kernels, "train", refuse)
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        batch_norm(X, None, None, training=True)
    assert not isinstance(raised.value, BatchNormError)


def test_what_has_to_be_converted_is_converted_for_all_kernels(kernels: Kernels) -> None:
    mask = torch.rand(6, 5) < 0.7
    for given in (mask, mask.unsqueeze(1)):
        output = batch_norm(X, None, None, training=True, mask=given)
        assert (output.transpose(1, 2)[~mask] == 0).all()
    with pytest.raises(DtypeError):
        batch_norm(X, None, None, training=True, residual=X.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert batch_norm(X, None, None, training=True, residual=X.bfloat16()).dtype == X.dtype


def test_recorded_calls_leave_the_kernels_of_eager_mode_alone(kernels: Kernels) -> None:
    """A kernel that moves buffers by itself would do so once while it is traced."""
    layer = batchnorm.BatchNormAct1d(3)
    torch.compile(layer, fullgraph=True, backend="eager")(X)
    names, values = zip(*layer.named_buffers(), strict=True)
    buffers = dict(zip(names, (value.clone() for value in values), strict=True))
    grad(lambda x, buffers: functional_call(layer, buffers, (x,)).sin().sum())(X, buffers)
    assert "train" not in kernels.calls
    assert (int(layer.num_batches_tracked), int(buffers["num_batches_tracked"])) == (1, 2)


def test_what_a_transform_left_behind_is_a_tensor_like_any_other(kernels: Kernels) -> None:
    kept = []

    def function(x: Tensor) -> Tensor:
        kept.append(x)
        return x.sin().sum()

    grad(function)(X)
    assert torch._C._functorch.is_functorch_wrapped_tensor(kept[0])
    layer = batchnorm.BatchNormAct1d(3)
    torch.testing.assert_close(layer(kept[0]), batchnorm.BatchNormAct1d(3)(X))
    layer(kept[0]).sum().backward()


def test_gradients_have_the_parameters_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        layer = batchnorm.BatchNorm1d(3).to(dtype)
        for training in (True, False):
            layer.train(training)
            x = X.to(torch.bfloat16 if dtype == torch.float32 else dtype).requires_grad_()
            found = torch.autograd.grad(layer(x).sin().sum(), (x, layer.weight, layer.bias))
            assert [gradient.dtype for gradient in found] == [x.dtype, dtype, dtype]


@pytest.mark.parametrize("layer", ["BatchNormAct2d", "GhostBatchNorm2d", "FrozenBatchNorm2d"])
def test_hooks_on_saved_tensors_may_give_another_layout_back(layer: str) -> None:
    """As torch's ``save_on_cpu(pin_memory=True)`` does: bits lie as the input did when they were made."""
    norm = getattr(batchnorm, layer)(8, activation="relu")
    x, residual, v = (torch.randn(6, 8, 5, 5).to(memory_format=torch.channels_last) for _ in range(3))

    def gradients(pack: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        inputs = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
            y = norm(inputs[0], residual=inputs[1])
        return torch.autograd.grad(y, inputs, v)

    contiguous = gradients(lambda kept: kept.clone(memory_format=torch.contiguous_format))
    for found, expected in zip(contiguous, gradients(lambda kept: kept), strict=True):
        torch.testing.assert_close(found, expected)
