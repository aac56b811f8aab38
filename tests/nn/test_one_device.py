"""No tensor is made elsewhere than the input is, and nothing is copied to or from its device.

No GPU is asked for that: the meta device is none of the CPU's either. Forward passes run on fake GPU tensors too, as
far as a torch without GPUs lets them: it neither indexes nor writes into these.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from batchnorm import functional
from batchnorm.errors import DeviceError
from nn.every_layer import CASES, IDS, LAYERS, Operators, run, tensors, world_of_one

cases = pytest.mark.parametrize(("name", "masked", "momentum"), CASES, ids=IDS)
on_gpu = pytest.mark.parametrize("name", [name for name in LAYERS if "Sync" not in name])


@pytest.fixture(autouse=True, scope="module")
def _group() -> Iterator[None]:
    with world_of_one("gloo"):
        yield


@cases
def test_all_tensors_are_where_the_input_is(name: str, masked: bool, momentum: float | None) -> None:
    layer = LAYERS[name]
    module, given = layer.build(momentum=momentum, device="meta"), tensors(layer, masked, "meta")
    with Operators() as operators:
        for mode in (True, False):
            assert {each.device.type for each in run(module.train(mode), given).values()} == {"meta"}
    assert not operators.seen


def test_tensors_of_two_devices_are_seen() -> None:
    with Operators() as operators:
        torch.ones(3, device="meta") + torch.tensor(1.0)
    assert len(operators.seen) == 1


def test_a_momentum_elsewhere_is_refused() -> None:
    x, momentum = torch.randn(4, 3), torch.tensor(0.1, device="meta")
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises(DeviceError, match="momentum is on meta and the input on cpu"):
        functional.batch_norm(x, mean, var, training=True, momentum=momentum)
    assert mean.tolist() == [0.0] * 3


@on_gpu
def test_nothing_is_copied_to_or_from_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(self: Tensor, other: Tensor) -> Tensor:
        return torch.ops.aten.copy_(self, other)  # the method asks for a GPU

    monkeypatch.setattr(Tensor, "copy_", copy)
    layer = LAYERS[name]
    given = tensors(layer, False, "cpu")
    with FakeTensorMode() as fake, torch.no_grad():
        module = layer.build(momentum=None, device="cuda")
        moved = {key: torch.empty_like(fake.from_tensor(each), device="cuda") for key, each in given.items()}
        with Operators() as operators:
            for mode in (True, False):
                assert run(module.train(mode), moved, backward=False)["output"].device.type == "cuda"
    assert not operators.seen
