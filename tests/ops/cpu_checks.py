"""Every operator of the compiled kernels on one case: against the float64 reference, and against one another."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from batchnorm import reference
from batchnorm.ops.cpu import kernels
from ops.cpu_cases import OPS, Case, strided
from ops.cpu_truth import Bounded, expected

EVERY = tuple(itertools.product([False, True], repeat=4))
SOME = ((True,) * 4, (True, False, False, False), (False, True, True, False), (False, False, False, True))


def wishes(case: Case) -> tuple[tuple[bool, ...], ...]:
    """Which gradients are asked for: every choice, or on large inputs those that take ways of their own."""
    return EVERY if case.input.numel() <= 20_000 else SOME


def same(what: str, one: Tensor, other: Tensor) -> None:
    if one.dim() > 1:  # of a vector of one value it means nothing
        assert one.stride() == other.stride(), f"{what}: strides {one.stride()} and {other.stride()}"
    assert one.dtype == other.dtype, what
    assert torch.equal(one, other), f"{what}: not the same bits"


def check(case: Case) -> None:
    """Every operator on one case."""
    truth = expected(case)
    strides = torch.empty_like(case.input).stride()
    output, count, mean, var, bits = case.forward(keep_bits=True)
    for name, found in zip(("output", "count", "mean", "var"), (output, count, mean, var), strict=True):
        truth[name].check(name, found)
    assert output.stride() == strides
    values = case.input.numel() // case.input.shape[1]
    assert bits.numel() == (case.input.shape[1] * -(-values // 8) if case.activation.needs_bit else 0)
    assert count.dtype == torch.int64
    same("output without bits", case.forward()[0], output)
    for name, one, other in zip(
        ("count", "mean", "var"), OPS.moments(case.input, case.mask), (count, mean, var), strict=True
    ):
        same(f"moments: {name}", one, other)
    for name, one, other in zip(
        ("count", "mean", "var"), OPS.double_moments(case.input, case.mask), (count, mean, var), strict=True
    ):
        same(f"double_moments, rounded: {name}", one.to(other.dtype), other)
    same("normalize", OPS.normalize(*case.layer(mean, var), *case.described), output)
    check_backward(case, truth, (mean, var), bits if case.activation.needs_bit else None, count)
    if case.mask is not None or values > 1:
        check_train(case, (output, count, mean, var, bits))
        check_direct(case, (output, count, mean, var, bits))
    check_evaluation(case)


def check_backward(
    case: Case, truth: dict[str, Bounded], statistics: tuple[Tensor, Tensor], bits: Tensor | None, count: Tensor | None
) -> None:
    names = ("grad_input", "grad_weight", "grad_bias", "grad_residual")
    strides = torch.empty_like(case.input).stride()
    layer = (case.grad_output, *case.layer(*statistics), None)
    gradients = OPS.backward(*layer, count, *case.described, [True] * 4)
    for name, gradient in zip(names, gradients, strict=True):
        truth[name].check(name, gradient)
        assert gradient.stride() == (strides if name in ("grad_input", "grad_residual") else (1,)), name
    # z is computed again as it was: its bits are those that the forward pass kept, without the residual.
    if bits is not None:
        by_bits = (case.grad_output, *case.layer(*statistics, residual=False), bits)
        for name, one, other in zip(
            names, OPS.backward(*by_bits, count, *case.described, [True] * 4), gradients, strict=True
        ):
            same(f"{name} by bits", one, other)
    for wanted in wishes(case):
        some = OPS.backward(*layer, count, *case.described, list(wanted))
        for name, want, one, other in zip(names, wanted, some, gradients, strict=True):
            if want:
                same(f"{name} of {wanted}", one, other)
            else:
                assert one.numel() == 0, f"{name} of {wanted}"
    sums = OPS.grad_sums(*layer, *case.described)
    same("grad_sums: sum_dz", sums[0], gradients[2])
    same("grad_sums: sum_dz_standardized", sums[1], gradients[1])
    given_sums = sums if count is not None else (None, None)
    for keep in (True, False):
        dx, dz = OPS.grad_input(*layer, count, *given_sums, *case.described, keep)
        truth["grad_input"].check("grad_input, by sums", dx)  # by sums that were rounded to be passed
        assert dx.stride() == strides
        if keep:
            same("grad_residual", dz, gradients[3])
        else:
            assert dz.numel() == 0


def check_train(case: Case, wanted: tuple[Tensor, ...]) -> None:
    channels = case.input.shape[1]
    parameters = (case.weight, case.bias, case.residual, case.mask)
    count = int(wanted[1])
    moments = reference.Moments(count, wanted[2].double().numpy(), wanted[3].double().numpy() * count)
    for dtype, momentum in ((torch.float32, 0.3), (torch.float64, None), (torch.bfloat16, 0.3)):
        mean, var, seen = torch.full((channels,), 0.5, dtype=dtype), torch.ones(channels, dtype=dtype), torch.tensor(3)
        buffers = (strided(mean), strided(var), seen)
        found = OPS.train(case.input, *parameters, *buffers, momentum, True, *case.described, True)
        for name, one, other in zip(("output", "count", "mean", "var", "bits"), found, wanted, strict=True):
            same(f"train: {name}", one, other)
        assert int(seen) == (4 if count > 1 else 3)
        if count < 2:
            assert torch.equal(buffers[0], mean)
            assert torch.equal(buffers[1], var)
            continue
        share = 1 / 4 if momentum is None else momentum
        for buffer, true in zip(
            buffers, reference.update_running(mean.double().numpy(), var.double().numpy(), moments, share), strict=False
        ):
            # The batch's statistic and the buffer are each rounded to the buffer's dtype, the unbiased variance to its
            # own before.
            step = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps
            np.testing.assert_allclose(buffer.double(), true, rtol=0, atol=step * (1 + np.abs(true).max()))


def check_direct(case: Case, wanted: tuple[Tensor, ...]) -> None:
    """What layers call, which goes past the dispatcher where it can, gives what the operators give."""
    channels = case.input.shape[1]
    settings = (case.eps, case.activation)
    tensors = (case.weight, case.bias, case.residual, case.mask)
    moved = []
    for train in (kernels.train, None):
        buffers = (torch.full((channels,), 0.5), torch.ones(channels), torch.tensor(3))
        if train is None:
            OPS.train(case.input, *tensors, *buffers, None, True, *case.described, True)
        else:
            found = train(case.input, *tensors, *buffers, None, True, *settings, case.activation.needs_bit)
        moved.append(buffers)
    for name, one, other in zip(("output", "count", "mean", "var"), found[:4], wanted[:4], strict=True):
        same(f"direct: {name}", one, other)
    bits = None
    if case.activation.needs_bit:
        assert found[4] is not None
        same("direct: bits", found[4], wanted[4])
        bits = found[4]
    for name, one, other in zip(("running_mean", "running_var", "num_batches_tracked"), *moved, strict=True):
        same(f"direct: {name}", one, other)
    _, count, mean, var, _ = wanted
    layer = (mean, var, case.weight, case.bias, case.residual, case.mask)
    same("direct: normalize", kernels.normalize(case.input, *layer, *settings), wanted[0])
    for kept, values in ((bits, count), (None, None)):
        rest = (*case.layer(mean, var), kept, values)
        gradients = OPS.backward(case.grad_output, *rest, *case.described, [True] * 4)
        for asked in wishes(case):
            some = kernels.backward(case.grad_output, *rest, *settings, asked)
            for name, want, one, other in zip(
                ("dx", "dweight", "dbias", "dresidual"), asked, some, gradients, strict=True
            ):
                assert (one is not None) == want
                if one is not None:
                    same(f"direct: {name} of {asked}", one, other)


def check_evaluation(case: Case) -> None:
    channels = case.input.shape[1]
    generator = torch.Generator().manual_seed(channels)
    parameters = torch.float64 if case.input.dtype == torch.float64 else torch.float32
    mean = torch.randn(channels, generator=generator).to(parameters)
    var = (torch.rand(channels, generator=generator) * 100 + 0.01).to(parameters)
    truth = expected(case, mean, var)
    output = OPS.normalize(*case.layer(mean, var), *case.described)
    truth["output"].check("evaluation: output", output)
    same("strided statistics", OPS.normalize(*case.layer(strided(mean), strided(var)), *case.described), output)
    check_backward(case, truth, (mean, var), None, None)
