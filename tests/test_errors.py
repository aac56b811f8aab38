"""Errors: the family, the path of the layer, and the way across processes."""

import pickle

import pytest
import torch

import batchnorm
from batchnorm.errors import ArgumentError, BatchNormError, DtypeError, ShapeError


def test_kinds_are_the_built_in_ones_too() -> None:
    for kind, built_in in (
        (ShapeError, ValueError),
        (ShapeError, RuntimeError),
        (DtypeError, TypeError),
        (ArgumentError, ValueError),
    ):
        assert issubclass(kind, built_in)
        assert issubclass(kind, BatchNormError)


def test_outside_a_layer_no_path_is_made_up() -> None:
    error = ShapeError("wrong.", "mend it.")
    assert (error.layer, str(error)) == ("", "wrong. Mend: mend it.")


def test_the_path_is_the_one_in_the_outermost_module() -> None:
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = batchnorm.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x)

    model = torch.nn.Sequential(torch.nn.Identity(), Inner())
    with pytest.raises(ShapeError, match=r"^1\.norm \(BatchNorm2d\): "):
        model(torch.randn(2, 3))
    with pytest.raises(ShapeError, match=r"^BatchNorm2d: "):
        model[1].norm(torch.randn(2, 3))


def test_pickled_errors_keep_their_words() -> None:
    with pytest.raises(ShapeError) as raised:
        torch.nn.Sequential(batchnorm.BatchNorm1d(3))(torch.randn(2, 4))
    copy = pickle.loads(pickle.dumps(raised.value))
    assert type(copy) is ShapeError
    assert (str(copy), copy.layer, copy.mend) == (str(raised.value), raised.value.layer, raised.value.mend)
