"""Which kernel serves whom, and what is said about it."""

import os
import subprocess
import sys

import pytest
import torch

import batchnorm
from batchnorm import ops
from batchnorm.ops import cpu, eager, native
from batchnorm.ops.dispatch import kernels

INPUTS = {
    "plain": (torch.randn(4, 3), None),
    "masked": (torch.randn(4, 3), torch.ones(4, dtype=torch.bool)),
    "one value": (torch.randn(1, 3), None),
    "empty": (torch.randn(0, 3), None),
}


@pytest.mark.parametrize("name", INPUTS)
def test_the_compiled_kernels_serve_whatever_is_on_the_cpu(name: str) -> None:
    if not cpu.available:
        pytest.skip(cpu.reason)
    from batchnorm.ops.cpu import kernels as compiled

    input, mask = INPUTS[name]
    assert kernels(input, mask) is kernels(input, mask, evaluation=True) is compiled
    assert ops.explain(input, mask).startswith("cpu: ")


@pytest.mark.parametrize(("name", "module"), list(zip(INPUTS, (native, eager, eager, eager), strict=True)))
def test_elsewhere_masks_and_single_values_go_to_the_plain_kernels(name: str, module: object) -> None:
    input, mask = (None if tensor is None else tensor.to("meta") for tensor in INPUTS[name])
    assert input is not None
    assert kernels(input, mask) is module
    assert kernels(input, mask, evaluation=True) is native
    assert ops.explain(input, mask).startswith(kernels(input, mask).__name__.split(".")[-1])


def test_backends_are_one_line_each() -> None:
    assert [backend.name for backend in batchnorm.backends()] == ["cpu", "triton", "native", "eager"]
    assert all("\n" not in str(backend) for backend in batchnorm.backends())
    assert batchnorm.backends()[0].available == cpu.available


def test_without_the_compiled_kernels_everything_runs() -> None:
    """Design rule 9; and graphs, which reach the kernels by the operators, find the Python ones."""
    code = (
        "import torch, batchnorm\n"
        "from batchnorm.ops import native\n"
        "from batchnorm.ops.dispatch import kernels\n"
        "x = torch.randn(4, 3, requires_grad=True)\n"
        "assert kernels(x, None) is native\n"
        "layer = batchnorm.BatchNormAct1d(3)\n"
        "layer(x, residual=x, mask=torch.tensor([True, True, False, True])).sum().backward()\n"
        "torch.ops.batchnorm.forward(x, None, None, None, None, 1e-5, 'relu', [], False)[0].sum().backward()\n"
        "print(batchnorm.backends()[0])\n"
    )
    environment = {**os.environ, "BATCHNORM_CPU_KERNELS": "0"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("cpu: no (everything on the CPU; turned off by BATCHNORM_CPU_KERNELS=0")
