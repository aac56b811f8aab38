"""The plain-torch kernels against the float64 reference, intermediates included."""

from types import ModuleType

import numpy as np
import pytest
import torch

from batchnorm import Activation, reference
from batchnorm.activation import ACTIVATIONS
from batchnorm.ops import eager, native
from batchnorm.ops.bits import pack_bits, unpack_bits
from batchnorm.ops.moments import merge_moments
from batchnorm.ops.running import update_running
from contract import reference_activation

D = torch.float64
SHAPES = [(6, 3), (4, 3, 5), (3, 2, 4, 3), (2, 3, 2, 3, 2), (9, 1), (2, 7, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_moments(shape: tuple[int, ...], masked: bool) -> None:
    x = torch.randn(shape, dtype=D) * 3 + 7
    mask = torch.rand(shape[0], *shape[2:]) < 0.6 if masked else None
    count, mean, var = eager.moments(x, mask)
    true = reference.moments(x.numpy(), None if mask is None else mask.numpy())
    assert int(count) == true.count
    np.testing.assert_allclose(mean, true.mean, rtol=1e-13)
    np.testing.assert_allclose(var, true.variance, rtol=1e-12)


def test_moments_of_a_large_mean_keep_the_spread() -> None:
    x = torch.randn(100_000, 2, dtype=D) * 1e-2 + torch.tensor([1e4, 1e6], dtype=D)
    x32 = x.float()
    _, mean, var = eager.moments(x32)
    true = reference.moments(x32.numpy())
    np.testing.assert_allclose(mean, true.mean, rtol=1e-7)
    np.testing.assert_allclose(var, true.variance, rtol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "masked"), [(eager, False), (eager, True), (native, False)], ids=["eager", "masked", "native"]
)
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_forward_and_backward(name: str, kernel: ModuleType, masked: bool) -> None:
    x, residual, dy = (torch.randn(4, 3, 5, dtype=D) for _ in range(3))
    weight, bias = torch.randn(3, dtype=D), torch.randn(3, dtype=D)
    mask = torch.rand(4, 5) < 0.7 if masked else None
    activation = Activation(name)
    keep = activation.needs_bit
    output, count, mean, var, bits = kernel.forward(x, weight, bias, residual, mask, 1e-5, activation, keep)
    true, saved = reference.forward(
        x.numpy(),
        weight.numpy(),
        bias.numpy(),
        residual=residual.numpy(),
        mask=None if mask is None else mask.numpy(),
        activation=reference_activation(name),
    )
    assert int(count) == saved.count
    assert bits.numel() == (3 * 3 if keep else 0)  # 20 values a channel: three bytes
    np.testing.assert_allclose(mean, saved.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(1 / torch.sqrt(var + 1e-5), saved.invstd, rtol=1e-12)
    np.testing.assert_allclose(output, true, rtol=1e-11, atol=1e-13)
    # With bits the residual is not needed any more.
    shared = (mean, var, weight, bias, None if keep else residual, mask, bits if keep else None, count)
    found = kernel.backward(dy, x, *shared, 1e-5, activation)
    expected = reference.backward(dy.numpy(), saved)
    for ours, wanted in zip(found, (expected.x, expected.weight, expected.bias, expected.residual), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-12)
    for place in range(4):
        one = [index == place for index in range(4)]
        alone = kernel.backward(dy, x, *shared, 1e-5, activation, one)
        assert [gradient is not None for gradient in alone] == one
        torch.testing.assert_close(alone[place], found[place])


@pytest.mark.parametrize(
    ("shape", "size"),
    [((0, 3), 0), ((4, 0, 2), 0), ((1, 1), 1), ((1, 7), 7), ((8, 1), 1), ((9, 1), 2), ((5, 3, 2), 6), ((17, 59), 177)],
    ids=str,
)
def test_bits_come_back(shape: tuple[int, ...], size: int) -> None:
    on = torch.rand(shape) < 0.5
    bits = pack_bits(on)
    assert bits.numel() == size
    assert torch.equal(unpack_bits(bits, on), on)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kernel", [eager, native], ids=lambda module: module.__name__.rpartition(".")[2])
def test_train_is_forward_and_then_the_buffers(kernel: ModuleType, skip: bool, momentum: float | None) -> None:
    layer = (torch.randn(3), torch.randn(3), torch.randn(6, 3, 4), None)
    settings = (1e-5, Activation("relu"), True)
    buffers, wanted = ((torch.randn(3).abs(), torch.ones(3), torch.tensor(4)) for _ in range(2))
    for one, other in zip(buffers, wanted, strict=True):
        other.copy_(one)
    for bad in (0.0, float("nan"), 1.0):
        x = torch.randn(6, 3, 4)
        x[0, 1, 0] += bad
        versions = [buffer._version for buffer in buffers]
        found = kernel.train(x, *layer, *buffers, momentum, skip, *settings)
        plain = kernel.forward(x, *layer, *settings)
        torch.testing.assert_close(found, plain, rtol=0, atol=0, equal_nan=True)
        weight = 1 / (wanted[2] + 1) if momentum is None else momentum
        update_running(*wanted, *plain[1:4], weight, skip)
        torch.testing.assert_close(buffers, wanted, equal_nan=True)
        # What autograd keeps of a buffer must be known to be out of date.
        assert all(buffer._version > version for buffer, version in zip(buffers, versions, strict=True))
    assert int(buffers[2]) == (6 if skip else 7)


@pytest.mark.parametrize("kernel", [eager, native], ids=lambda module: module.__name__.rpartition(".")[2])
def test_train_without_buffers(kernel: ModuleType) -> None:
    x, seen = torch.randn(6, 3), torch.tensor(4)
    found = kernel.train(x, None, None, None, None, None, None, seen, 0.1, True, 1e-5, Activation("relu"), False)
    torch.testing.assert_close(found, kernel.forward(x, None, None, None, None, 1e-5, Activation("relu"), False))
    assert int(seen) == 4


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kernel", [eager, native], ids=lambda module: module.__name__.rpartition(".")[2])
def test_an_interrupt_leaves_the_buffers_whole(kernel: ModuleType, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> torch.Tensor:
        moves.append(arguments)
        if len(moves) > place:
            raise KeyboardInterrupt
        return torch.full((3,), 7.0)

    moves: list[object] = []
    monkeypatch.setattr("batchnorm.ops.running._moved", interrupted)
    buffers = (torch.zeros(3), torch.ones(3), torch.tensor(0))
    settings = (0.1, True, 1e-5, Activation("relu"), False)
    with pytest.raises(KeyboardInterrupt):
        kernel.train(torch.randn(8, 3), None, None, None, None, *buffers, *settings)
    assert [buffer.tolist() for buffer in buffers] == [[0.0] * 3, [1.0] * 3, 0]


def test_train_counts_an_empty_batch() -> None:
    mean, var, seen = torch.randn(3), torch.rand(3), torch.tensor(4)
    before = (mean.clone(), var.clone())
    settings = (0.1, True, 1e-5, Activation("relu"), False)
    eager.train(torch.randn(0, 3), None, None, None, None, mean, var, seen, *settings)
    assert (torch.equal(mean, before[0]), torch.equal(var, before[1]), int(seen)) == (True, True, 5)


def test_merge_is_the_moments_of_all() -> None:
    x = torch.randn(50, 4, dtype=D) + torch.tensor([0.0, 1e3, -5.0, 1e6], dtype=D)
    whole = eager.moments(x)
    merged = eager.moments(x[:0])
    for part in (x[:1], x[1:20], x[20:20], x[20:]):
        merged = merge_moments(*merged, *eager.moments(part))
    assert int(merged[0]) == 50
    torch.testing.assert_close(merged[1], whole[1])
    torch.testing.assert_close(merged[2], whole[2], rtol=1e-9, atol=0)


def test_update_running_is_the_references() -> None:
    x = torch.randn(6, 3, dtype=D)
    mean, var, seen = torch.randn(3, dtype=D), torch.rand(3, dtype=D), torch.tensor(4)
    wanted = reference.update_running(mean.numpy(), var.numpy(), reference.moments(x.numpy()), 0.3)
    update_running(mean, var, seen, *eager.moments(x), 0.3, True)
    np.testing.assert_allclose(mean, wanted[0], rtol=1e-14)
    np.testing.assert_allclose(var, wanted[1], rtol=1e-14)
    assert int(seen) == 5


def test_a_finite_statistic_near_overflow_is_no_reason_to_skip() -> None:
    mean, var, seen = torch.zeros(2), torch.ones(2), torch.tensor(0)
    update_running(mean, var, seen, torch.tensor(9), torch.full((2,), 3e38), torch.full((2,), 3e38), 0.1, True)
    assert int(seen) == 1
    assert torch.isfinite(var).all()
