"""torch's own test inputs for these modules and operators, run against ours.

``ModuleInfo`` and ``OpInfo`` are what torch tests ``BatchNorm*`` and ``batch_norm`` with. They are private, so a
torch without them skips these; the versions this project pins have them.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import batchnorm
from batchnorm.errors import ShapeError
from batchnorm.functional import batch_norm
from tolerance import assert_three_way, double

modules = pytest.importorskip("torch.testing._internal.common_modules")
methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")

MODULES = [info for info in modules.module_db if info.name.startswith("nn.BatchNorm")]
OPERATORS = [info for info in methods.op_db if info.name == "nn.functional.batch_norm" and not info.variant_test_name]


def ours(info: Any) -> type[torch.nn.Module]:
    return getattr(batchnorm, info.name.removeprefix("nn."))


def test_there_is_something_to_run() -> None:
    assert len(MODULES) == 3
    assert len(OPERATORS) == 1


def _gradients(
    x: torch.Tensor, module: torch.nn.Module, output: torch.Tensor, dy: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(output, (x, *module.parameters()), dy.to(output.dtype))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
def test_module_inputs(info: Any, dtype: torch.dtype, training: bool) -> None:
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
    assert samples
    for sample in samples:
        built = sample.constructor_input
        layer, twin = (
            cls(*built.args, **built.kwargs).to(dtype).train(training) for cls in (ours(info), info.module_cls)
        )
        twin.load_state_dict(layer.state_dict())
        given = sample.forward_input
        x = given.args[0]
        truth = copy.deepcopy(twin).double()
        dy = torch.randn_like(x)
        runs = [
            (x, layer, layer(x)),
            (x, twin, twin(x)),
            (exact := x.detach().double().requires_grad_(), truth, truth(exact)),
        ]
        results = [
            {
                "output": output,
                **dict(zip(("input", *dict(m.named_parameters())), _gradients(i, m, output, dy), strict=True)),
                **dict(m.named_buffers()),
            }
            for i, m, output in runs
        ]
        # Torch takes the statistics of half-precision layers in half precision: judged by float64, not by torch.
        for name, value in results[0].items():
            true = double(results[2][name])
            spread = float(np.sqrt(double(results[2]["running_var"]).max())) if name == "running_mean" else 0.0
            assert_three_way(f"{info.name} {dtype} {name}", value, results[1][name], true, spread)


@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
def test_module_error_inputs(info: Any) -> None:
    refused = 0
    for training in (True, False):
        samples = info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
        )
        assert samples
        for sample in samples:
            built, given = (
                sample.module_error_input.constructor_input,
                sample.module_error_input.forward_input,
            )
            layer, twin = (cls(*built.args, **built.kwargs).train(training) for cls in (ours(info), info.module_cls))
            try:
                expected = twin(*given.args, **given.kwargs)
            except sample.error_type:
                with pytest.raises(sample.error_type):
                    layer(*given.args, **given.kwargs)
                refused += 1
            else:  # eps=0 in evaluation
                torch.testing.assert_close(layer(*given.args, **given.kwargs), expected)
    assert refused >= 3


def operator_samples(dtype: torch.dtype, requires_grad: bool) -> Iterator[Any]:
    count = 0
    for sample in OPERATORS[0].sample_inputs("cpu", dtype, requires_grad=requires_grad):
        if sample.input.dim() < 2:
            # torch lets an empty input without channels through (and no other): there is nothing to normalise.
            assert sample.input.numel() == 0
            with pytest.raises(ShapeError):
                batch_norm(sample.input, *sample.args, **sample.kwargs)
            continue
        count += 1
        yield sample
    assert count > 5


def _run(function: Callable[..., torch.Tensor], sample: Any, dtype: torch.dtype | None = None) -> dict[str, Any]:
    def copied(value: Any) -> Any:
        return value.detach().clone().to(dtype) if isinstance(value, torch.Tensor) else value

    arguments = [copied(value) for value in sample.args]
    output = function(copied(sample.input), *arguments, **{k: copied(v) for k, v in sample.kwargs.items()})
    return {"output": output, "running_mean": arguments[0], "running_var": arguments[1]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_operator_inputs(dtype: torch.dtype) -> None:
    for sample in operator_samples(dtype, requires_grad=False):
        ours, theirs = _run(batch_norm, sample), _run(OPERATORS[0].op, sample)
        truth = _run(OPERATORS[0].op, sample, torch.float64)
        for name, value in ours.items():
            if value is not None:
                assert_three_way(f"{sample.kwargs} {name}", value, theirs[name], double(truth[name]))


def differentiable(sample: Any) -> tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]:
    """The sample as a function of its tensors that require a gradient; buffers are copied at every call."""
    names = [key for key, value in sample.kwargs.items() if isinstance(value, torch.Tensor) and value.requires_grad]
    positions = [i for i, value in enumerate(sample.args) if isinstance(value, torch.Tensor) and value.requires_grad]

    def function(x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        arguments = [a.detach().clone() if i < 2 and a is not None else a for i, a in enumerate(sample.args)]
        for position, tensor in zip(positions, tensors, strict=False):
            if position >= 2:
                arguments[position] = tensor
        named = dict(zip(names, tensors[len(positions) :], strict=True))
        return batch_norm(x, *arguments, **{**sample.kwargs, **named})

    tensors = [sample.args[i] for i in positions] + [sample.kwargs[key] for key in names]
    return function, (sample.input, *tensors)


def test_operator_gradients() -> None:
    """Reverse, forward, batched, and second derivatives in both combinations, as torch checks its own."""
    checked = 0
    for sample in operator_samples(torch.float64, requires_grad=True):
        function, inputs = differentiable(sample)
        if inputs[0].numel() > 60:
            continue
        checked += 1
        inputs = tuple(t for i, t in enumerate(inputs) if i == 0 or t.is_leaf)
        assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(function, inputs, check_fwd_over_rev=True)
    assert checked >= 3


@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
def test_module_gradients(info: Any) -> None:
    for training in (True, False):
        for sample in info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
        ):
            built = sample.constructor_input
            layer = ours(info)(*built.args, **built.kwargs).double().train(training)
            x = sample.forward_input.args[0]
            if x.numel() > 60:  # the check takes time by the square of this
                x = x.detach()[(slice(None), slice(None), *(slice(2),) * (x.dim() - 2))].clone().requires_grad_()
            parameters = tuple(layer.parameters())

            def function(x: torch.Tensor, *parameters: torch.Tensor, layer: torch.nn.Module = layer) -> torch.Tensor:
                named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
                state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
                return torch.func.functional_call(layer, {**named, **state}, (x,))

            assert gradcheck(function, (x, *parameters), check_forward_ad=True)
            assert gradgradcheck(function, (x, *parameters))
