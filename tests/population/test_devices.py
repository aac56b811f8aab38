"""Where batches go, and from where processes exchange numbers, with models that are not on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from batchnorm.population.batches import moved
from batchnorm.population.ranks import Ranks


@pytest.mark.parametrize("affine", [True, False])
def test_batches_follow_the_model_by_its_buffers_too(affine: bool) -> None:
    model = torch.nn.BatchNorm1d(3, affine=affine, device="meta")
    batch = {"input": torch.randn(2, 3), "there": torch.empty(1, device="meta"), "name": "x"}
    assert {str(each.device) for each in moved(batch, model).values() if isinstance(each, torch.Tensor)} == {"meta"}


def test_they_stay_where_the_model_has_no_place() -> None:
    x = torch.randn(2, 3)
    assert moved(x, torch.nn.ReLU()) is x


def _device(types: list[str], bound: torch.device | None, near: torch.device | None) -> torch.device:
    ranks = Ranks()
    ranks._group = SimpleNamespace(_device_types=[torch.device(each) for each in types], bound_device_id=bound)
    ranks._near = near
    return ranks._device()


def test_exchanges_go_from_the_cpu_where_the_group_has_one() -> None:
    assert _device(["cpu", "cuda"], torch.device("cuda", 1), torch.device("cuda", 2)) == torch.device("cpu")


def test_with_nccl_they_go_from_the_gpu_of_the_group_or_else_of_the_model() -> None:
    """Not from the current one, which is the first for every rank that has not chosen."""
    assert _device(["cuda"], torch.device("cuda", 1), torch.device("cuda", 2)) == torch.device("cuda", 1)
    assert _device(["cuda"], None, torch.device("cuda", 2)) == torch.device("cuda", 2)
    assert _device(["cuda"], None, torch.device("cpu")) == torch.device("cuda")
    assert _device(["cuda"], None, None) == torch.device("cuda")


def test_they_know_the_models_device() -> None:
    assert Ranks(model=torch.nn.Linear(2, 2, device="meta"))._near == torch.device("meta")
