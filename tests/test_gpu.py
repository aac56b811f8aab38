"""What is around the layers, and the layers themselves, on a GPU against the CPU (:mod:`on_device`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import batchnorm
from nn.every_layer import SHAPE, world_of_one
from on_device import CHECKS

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU; test_default_device.py runs the same checks on the CPU", allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def _exactly() -> Iterator[None]:
    """Convolutions in float32: by default a GPU rounds what they multiply to fewer digits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    with world_of_one("gloo"):
        yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name: str) -> None:
    CHECKS[name]("cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_on_a_gpu_that_is_not_the_current_one() -> None:
    layer = batchnorm.BatchNormAct2d(SHAPE[1], device="cuda:1")
    x = torch.randn(SHAPE, device="cuda:1", requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert {each.device.index for each in (output, x.grad, layer.running_mean)} == {1}
    torch.testing.assert_close(output, batchnorm.BatchNormAct2d(SHAPE[1])(x.cpu()), check_device=False)
