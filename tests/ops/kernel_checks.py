"""Every operator on one case: against the float64 reference, and against one another.

The operators are ``torch.ops.batchnorm``'s, and beside them the functions that layers call, past the dispatcher where
they can: of whatever module serves the case's device.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from batchnorm import reference
from batchnorm.ops.dispatch import kernels
from ops.kernel_cases import OPS, Case, strided
from ops.kernel_truth import Bounded, expected
from tolerance import double

EVERY = tuple(itertools.product([False, True], repeat=4))
SOME = ((True,) * 4, (True, False, False, False), (False, True, True, False), (False, False, False, True))
GRADIENTS = ("grad_input", "grad_weight", "grad_bias", "grad_residual")
BUFFERS = ((torch.float32, 0.3), (torch.float64, None), (torch.bfloat16, 0.3))


def same(what: str, one: Tensor, other: Tensor) -> None:
    """The same bits, dtype and strides; on a GPU :func:`near`."""
    if one.dim() > 1:  # of a vector of one value it means nothing
        assert one.stride() == other.stride(), f"{what}: strides {one.stride()} and {other.stride()}"
    assert one.dtype == other.dtype, what
    if one.is_cuda and one.is_floating_point():
        near(what, one, other)
    else:
        assert torch.equal(one, other), f"{what}: not the same bits"


def near(what: str, one: Tensor, other: Tensor) -> None:
    """The same up to a few steps of the largest value: Triton's kernels each share out a tile in a way of their own."""
    steps = 16 * torch.finfo(one.dtype).eps
    largest = float(other.abs().max()) if other.numel() else 0.0
    torch.testing.assert_close(one, other, rtol=steps, atol=steps * largest, msg=lambda m: f"{what}: {m}")


def check(case: Case, brief: bool = False) -> None:
    """Every operator on one case; ``brief`` leaves out what small inputs take no way of their own for."""
    truth = expected(case)
    wishes = SOME if brief or case.input.numel() > 20_000 else EVERY
    strides = torch.empty_like(case.input).stride()
    needs_bit = case.activation.needs_bit
    output, count, mean, var, bits = found = case.forward(keep_bits=needs_bit)
    for name, tensor in zip(("output", "count", "mean", "var"), found, strict=False):
        truth[name].check(name, tensor)
    assert output.stride() == strides
    values = case.input.numel() // case.input.shape[1]
    assert bits.numel() == (case.input.shape[1] * -(-values // 8) if needs_bit else 0)
    assert count.dtype == torch.int64
    if needs_bit:
        same("output without bits", case.forward()[0], output)
    for name, one, other in zip(("count", "mean", "var"), OPS.moments(case.input, case.mask), found[1:], strict=False):
        same(f"moments: {name}", one, other)
    wide = OPS.double_moments(case.input, case.mask)
    for name, one, other in zip(("count", "mean", "var"), wide, found[1:], strict=False):
        same(f"double_moments, rounded: {name}", one.to(other.dtype), other)
    same("normalize", OPS.normalize(*case.layer(mean, var), *case.described), output)
    check_backward(case, truth, (mean, var), bits if needs_bit else None, count, wishes)
    if case.mask is not None or values > 1:
        check_train(case, found, BUFFERS[:1] if brief else BUFFERS)
        check_direct(case, found, wishes[:1] if brief else wishes)
    check_evaluation(case, wishes)


def check_once(case: Case) -> None:
    """Each kernel once against the reference: a fifth of :func:`check`, where that is what counts."""
    truth = expected(case)
    one_value = case.mask is None and case.input.numel() == case.input.shape[1]  # with which nobody trains
    found = case.forward(case.activation.needs_bit) if one_value else trained(case, torch.float32, 0.3)
    for name, tensor in zip(("output", "count", "mean", "var"), found, strict=False):
        truth[name].check(name, tensor)
    _, count, mean, var, bits = found
    ways = {"": (*case.layer(mean, var), None)}
    if case.activation.needs_bit:
        ways[" by bits"] = (*case.layer(mean, var, residual=False), bits)
    for way, layer in ways.items():
        gradients = OPS.backward(case.grad_output, *layer, count, *case.described, [True] * 4)
        for name, gradient in zip(GRADIENTS, gradients, strict=True):
            truth[name].check(name + way, gradient)
    mean, var = statistics_of_evaluation(case)
    truth = expected(case, mean, var)
    layer = case.layer(mean, var)
    truth["output"].check("evaluation: output", OPS.normalize(*layer, *case.described))
    wanted = [True, False, False, True]
    gradients = OPS.backward(case.grad_output, *layer, None, None, *case.described, wanted)
    truth["grad_input"].check("evaluation: grad_input", gradients[0])
    truth["grad_residual"].check("evaluation: grad_residual", gradients[3])


def check_backward(
    case: Case,
    truth: dict[str, Bounded],
    statistics: tuple[Tensor, Tensor],
    bits: Tensor | None,
    count: Tensor | None,
    wishes: tuple[tuple[bool, ...], ...],
) -> None:
    strides = torch.empty_like(case.input).stride()
    layer = (case.grad_output, *case.layer(*statistics), None)
    gradients = OPS.backward(*layer, count, *case.described, [True] * 4)
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        truth[name].check(name, gradient)
        assert gradient.stride() == (strides if name in ("grad_input", "grad_residual") else (1,)), name
    # z is computed again as it was: its bits are those that the forward pass kept, without the residual.
    if bits is not None:
        by_bits = (case.grad_output, *case.layer(*statistics, residual=False), bits)
        again = OPS.backward(*by_bits, count, *case.described, [True] * 4)
        of_bytes = (
            "triton" in kernels(case.input, case.mask).__name__
        )  # lanes that read a byte have other values to add
        for name, one, other in zip(GRADIENTS, again, gradients, strict=True):
            (near if of_bytes and name != "grad_residual" else same)(f"{name} by bits", one, other)
    for wanted in wishes:
        some = OPS.backward(*layer, count, *case.described, list(wanted))
        for name, want, one, other in zip(GRADIENTS, wanted, some, gradients, strict=True):
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


def check_train(case: Case, wanted: tuple[Tensor, ...], buffers: tuple[tuple[torch.dtype, float | None], ...]) -> None:
    for dtype, momentum in buffers:
        for name, one, other in zip(
            ("output", "count", "mean", "var", "bits"), trained(case, dtype, momentum), wanted, strict=True
        ):
            same(f"train: {name}", one, other)


def trained(case: Case, dtype: torch.dtype, momentum: float | None) -> tuple[Tensor, ...]:
    """What ``train`` gives, after a look at the buffers, of this dtype, that it moved."""
    channels, device = case.input.shape[1], case.input.device
    mean = torch.full((channels,), 0.5, dtype=dtype, device=device)
    var = torch.ones(channels, dtype=dtype, device=device)
    moved = (strided(mean), strided(var), torch.tensor(3, device=device))
    parameters = (case.weight, case.bias, case.residual, case.mask)
    needs_bit = case.activation.needs_bit
    found: tuple[Tensor, ...] = OPS.train(case.input, *parameters, *moved, momentum, True, *case.described, needs_bit)
    count = int(found[1])
    assert int(moved[2]) == (4 if count > 1 else 3)
    if count < 2:
        assert torch.equal(moved[0], mean)
        assert torch.equal(moved[1], var)
        return found
    share = 1 / 4 if momentum is None else momentum
    moments = reference.Moments(count, double(found[2]), double(found[3]) * count)
    true = reference.update_running(double(mean), double(var), moments, share)
    for buffer, expects in zip(moved, true, strict=False):
        # The batch's statistic and the buffer are each rounded to the buffer's dtype, the unbiased variance to its own
        # before.
        step = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps
        np.testing.assert_allclose(double(buffer), expects, rtol=0, atol=step * (1 + np.abs(expects).max()))
    return found


def check_direct(case: Case, wanted: tuple[Tensor, ...], wishes: tuple[tuple[bool, ...], ...]) -> None:
    """What layers call gives what the operators give."""
    channels, device = case.input.shape[1], case.input.device
    direct = kernels(case.input, case.mask)
    settings = (case.eps, case.activation)
    tensors = (case.weight, case.bias, case.residual, case.mask)
    needs_bit = case.activation.needs_bit
    moved = []
    for train in (direct.train, None):
        buffers = tuple(
            tensor.to(device) for tensor in (torch.full((channels,), 0.5), torch.ones(channels), torch.tensor(3))
        )
        if train is None:
            OPS.train(case.input, *tensors, *buffers, None, True, *case.described, needs_bit)
        else:
            found = train(case.input, *tensors, *buffers, None, True, *settings, needs_bit)
        moved.append(buffers)
    for name, one, other in zip(("output", "count", "mean", "var"), found[:4], wanted[:4], strict=True):
        same(f"direct: {name}", one, other)
    bits = None
    if needs_bit:
        assert found[4] is not None
        same("direct: bits", found[4], wanted[4])
        bits = found[4]
    for name, one, other in zip(("running_mean", "running_var", "num_batches_tracked"), *moved, strict=True):
        same(f"direct: {name}", one, other)
    _, count, mean, var, _ = wanted
    layer = (mean, var, case.weight, case.bias, case.residual, case.mask)
    same("direct: normalize", direct.normalize(case.input, *layer, *settings), wanted[0])
    for kept, values in ((bits, count), (None, None)):
        rest = (*case.layer(mean, var), kept, values)
        gradients = OPS.backward(case.grad_output, *rest, *case.described, [True] * 4)
        for asked in wishes:
            some = direct.backward(case.grad_output, *rest, *settings, asked)
            for name, want, one, other in zip(GRADIENTS, asked, some, gradients, strict=True):
                assert (one is not None) == want
                if one is not None and one is not case.grad_output:  # which has strides of its own
                    same(f"direct: {name} of {asked}", one, other)


def statistics_of_evaluation(case: Case) -> tuple[Tensor, Tensor]:
    channels, device = case.input.shape[1], case.input.device
    generator = torch.Generator("cpu").manual_seed(channels)
    dtype = torch.float64 if case.input.dtype == torch.float64 else torch.float32
    mean, var = torch.randn(channels, generator=generator), torch.rand(channels, generator=generator) * 100 + 0.01
    return mean.to(device, dtype), var.to(device, dtype)


def check_evaluation(case: Case, wishes: tuple[tuple[bool, ...], ...]) -> None:
    mean, var = statistics_of_evaluation(case)
    truth = expected(case, mean, var)
    output = OPS.normalize(*case.layer(mean, var), *case.described)
    truth["output"].check("evaluation: output", output)
    same("strided statistics", OPS.normalize(*case.layer(strided(mean), strided(var)), *case.described), output)
    check_backward(case, truth, (mean, var), None, None, wishes)
