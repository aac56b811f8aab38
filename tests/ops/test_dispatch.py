"""Which kernel serves whom, and what is said about it."""

import torch

import batchnorm
from batchnorm import ops
from batchnorm.ops import eager, native
from batchnorm.ops.dispatch import kernels


def test_masks_and_single_values_go_to_the_plain_kernels() -> None:
    x = torch.randn(4, 3)
    assert kernels(x, None) is native
    assert kernels(x, torch.ones(4, dtype=torch.bool)) is eager
    assert kernels(x[:1], None) is eager
    assert kernels(x[:0], None) is eager


def test_explain_agrees_with_dispatch() -> None:
    x = torch.randn(4, 3)
    for input, mask in ((x, None), (x, torch.ones(4, dtype=torch.bool)), (x[:1], None)):
        assert ops.explain(input, mask).startswith(kernels(input, mask).__name__.split(".")[-1])


def test_backends_are_one_line_each() -> None:
    assert [backend.name for backend in batchnorm.backends()] == ["native", "eager"]
    assert all("\n" not in str(backend) for backend in batchnorm.backends())
