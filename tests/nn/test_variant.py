"""Families whose activation is an argument: torch's class without one, and never with one."""

import copy
import pickle

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import batchnorm
from batchnorm.nn._variant import Variant, without_activation

FAMILIES = [
    value
    for value in vars(batchnorm).values()
    if isinstance(value, type) and issubclass(value, Variant) and value._plain
]


class Named(batchnorm.FrozenBatchNorm2d):
    pass


@pytest.mark.parametrize("cls", FAMILIES)
def test_a_torch_batch_norm_only_without_an_activation(cls: type[Variant]) -> None:
    for activation in (None, "identity", torch.nn.Identity()):
        layer = cls(3, activation=activation)
        assert isinstance(layer, cls)
        assert isinstance(layer, _BatchNorm)
        assert type(layer).__name__ == cls.__name__
    layer = cls(3, activation="relu")
    assert type(layer) is cls
    assert not isinstance(layer, _BatchNorm)


def test_the_torch_class_is_that_of_the_dimensions() -> None:
    for dims, torch_class in ((1, torch.nn.BatchNorm1d), (2, torch.nn.BatchNorm2d), (3, torch.nn.BatchNorm3d)):
        for name in ("GhostBatchNorm", "BatchRenorm"):
            assert isinstance(getattr(batchnorm, f"{name}{dims}d")(3), torch_class)


@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_copies_have_the_same_class(cls: type[Variant], activation: str | None) -> None:
    layer = cls(3, activation=activation)
    layer.note = "kept"
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        other = pickle.loads(pickle.dumps(layer, protocol))
        assert type(other) is type(layer)
        assert (other.activation, other.note) == (layer.activation, "kept")
    assert type(copy.deepcopy(layer)) is type(layer)


def test_a_subclass_is_what_it_says() -> None:
    layer = Named(3)
    assert type(layer) is Named
    assert not isinstance(layer, _BatchNorm)
    assert type(pickle.loads(pickle.dumps(layer))) is Named
    decorated = without_activation(torch.nn.BatchNorm2d)(type("Decorated", (batchnorm.FrozenBatchNorm2d,), {}))
    assert isinstance(decorated(3), torch.nn.BatchNorm2d)


def test_an_activation_is_not_lost_in_torch_sync_batch_norm() -> None:
    model = torch.nn.Sequential(*(cls(3, activation="relu") for cls in FAMILIES))
    kinds = [type(layer) for layer in model]
    assert [type(layer) for layer in torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)] == kinds


def test_an_unknown_activation_is_refused_before_anything_is_built() -> None:
    with pytest.raises(batchnorm.errors.ArgumentError, match="relux"):
        batchnorm.FrozenBatchNorm2d(3, activation="relux")
