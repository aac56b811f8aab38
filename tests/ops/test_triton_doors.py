"""Who comes in by the Triton kernels' two doors, and who is sent to the other, or away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="Triton is not installed")

import batchnorm
from batchnorm import functional
from batchnorm.ops import triton
from batchnorm.ops.triton import compute, kernels
from ops.kernel_cases import OPS
from ops.triton_interpreter import is_interpreted
from ops.triton_serving import serving

if not is_interpreted:
    pytest.skip("Triton compiles here: test_triton_gpu.py has what is meant", allow_module_level=True)


class Foreign(Tensor):
    """A class of somebody's own."""


@pytest.mark.parametrize("place", range(5))
def test_a_foreign_tensor_anywhere_goes_to_the_operator(place: int) -> None:
    tensors: list[Tensor | None] = [torch.randn(6, 3), torch.ones(3), torch.zeros(3), torch.randn(6, 3), None]
    tensors[4] = torch.ones(6, dtype=torch.bool)
    tensor = tensors[place]
    assert tensor is not None
    tensors[place] = tensor.as_subclass(Foreign)
    asked: list[str] = []
    with patch.object(kernels, "_OPS") as operators, patch.object(compute, "forward", asked.append):
        kernels.forward(*tensors, 1e-5, batchnorm.Activation("relu"), False)
    assert operators.forward.call_count == 1
    assert asked == []


def test_gradients_of_many_at_once() -> None:
    """``vmap`` hands the backward pass tensors that have no memory."""
    with serving():
        for training in (True, False):
            layer = batchnorm.BatchNormAct1d(3).train(training)
            x = torch.randn(5, 3, requires_grad=True)
            y = layer(x)
            some = torch.randn(4, 5, 3)

            def gradient(v: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
                return torch.autograd.grad(y, x, v, retain_graph=True)[0]

            together = torch.vmap(gradient)(some)
            torch.testing.assert_close(together, torch.stack([gradient(v) for v in some]))


def test_a_buffer_that_requires_a_gradient_is_not_written_to() -> None:
    mean, var = torch.zeros(3, requires_grad=True), torch.ones(3)
    with serving(), pytest.raises(RuntimeError, match="requires grad"):
        functional.batch_norm(torch.randn(6, 3), mean, var, training=True)
    assert torch.equal(mean, torch.zeros(3))


@pytest.mark.parametrize(
    "change",
    [
        {"mean": torch.zeros(4)},
        {"var": torch.ones(1)},
        {"running_var": torch.ones(4)},
        {"running_mean": torch.zeros(1).expand(8)},
        {"num_batches_tracked": torch.zeros(2, dtype=torch.int64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_statistics_that_do_not_go_with_the_buffers(change: dict[str, Tensor]) -> None:
    tensors = {
        "running_mean": torch.zeros(8),
        "running_var": torch.ones(8),
        "num_batches_tracked": torch.tensor(0),
        "count": torch.tensor(5),
        "mean": torch.randn(8),
        "var": torch.rand(8),
        **change,
    }
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with pytest.raises(RuntimeError, match="batchnorm: a "):
        compute.update_running(**tensors, momentum=0.1, skip_nonfinite=True)
    assert all(torch.equal(tensors[name], value) for name, value in before.items())


def test_bits_and_counts_that_are_not_of_this_input() -> None:
    x, vector = torch.randn(64, 8), torch.ones(8)
    layer = (x, x, vector, vector, None, None, None, None)
    relu = (1e-5, "relu", [])
    with serving():
        for bits in (torch.zeros(1, dtype=torch.uint8), torch.zeros(64)):
            with pytest.raises(RuntimeError, match="these bits are not of this input"):
                OPS.backward(*layer, bits, torch.tensor(64), *relu, [True] * 4)
            with pytest.raises(RuntimeError, match="these bits are not of this input"):
                OPS.grad_sums(*layer, bits, *relu)
        for count in (torch.tensor(64.0), torch.zeros(0, dtype=torch.int64)):
            with pytest.raises(RuntimeError, match="the count is"):
                OPS.backward(*layer, None, count, *relu, [True] * 4)


@contextmanager
def a_gpu(name: str = "a GPU", capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Torch says that it sees one."""
    said = {
        "is_available": True,
        "device_count": 1,
        "get_device_name": name,
        "get_device_capability": capability,
        "current_device": 0,
        "is_current_stream_capturing": False,
    }
    triton._serves.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patched:
            for function, value in said.items():
                patched.setattr(torch.cuda, function, lambda *_, value=value: value)
            yield
    finally:
        triton._serves.cache_clear()


def test_a_gpu_that_nothing_can_be_launched_on_is_left_to_torch() -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.\nAnd more")

    with a_gpu(), patch.object(triton, "_try", fail):
        assert triton.availability() == (False, "Triton does not work: RuntimeError: Failed to find C compiler.")
    with a_gpu(), patch.object(triton, "_try", lambda device: None):
        serves, why = triton.availability()
        assert serves
        assert why.endswith(" on a GPU")
        assert triton._serves(7) == (False, "torch sees no GPU 7")
    with a_gpu("an old GPU", (7, 0)):
        assert triton.availability() == (
            False,
            "an old GPU is older than what Triton compiles for (compute capability 7.5)",
        )


def test_what_is_tried_is_a_launch() -> None:
    """On the CPU, where torch makes its ones and the interpreter computes."""
    launched: list[str] = []
    real = compute.normalize

    def normalize(*arguments: object) -> Tensor:
        launched.append("normalize")
        return real(*arguments)

    with a_gpu(), patch.object(compute, "normalize", normalize):
        triton._try(torch.device("cpu"))
        with FakeTensorMode():  # where a fake tensor is the first that comes
            triton._try(torch.device("cpu"))
    assert launched == ["normalize", "normalize"]
