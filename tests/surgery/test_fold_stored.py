"""``fold``: what a forward pass stores on the model stays what it was."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from batchnorm.surgery.fold import fold
from surgery.filled import Code, filled, off

X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def attribute(self, y):
    self.place = y


def in_a_dict(self, y):
    self.place["conv"] = y


def in_a_list(self, y):
    self.place.append([y])


def in_an_object(self, y):
    self.place.inner.y = y


def of_a_child(self, y):
    self.norm.place = y


STORES = {
    "place": (attribute, None),
    "place['conv']": (in_a_dict, {}),
    "place[0][0]": (in_a_list, []),
    "norm.place": (of_a_child, None),
    "place.inner.y": (in_an_object, SimpleNamespace(inner=SimpleNamespace())),
}


def storing(store: Any, place: Any) -> Code:
    def forward(self, x):
        y = self.conv(x)
        store(self, y)
        return self.other(self.norm(y))

    other = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model = Code(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4), other=other)
    model.place = place
    return model


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("fresh", [True, False])
def test_a_norm_whose_input_is_stored_is_kept(name, fresh):
    """A fresh norm changes it by no more than ``eps`` does, which float64 shows."""
    model = storing(*STORES[name])
    done = fold(model if fresh else filled(model), X)
    assert [outcome.layer for outcome in done.changed] == ["other.2"]
    (kept,) = done.kept
    assert kept.layer == "norm"
    assert kept.detail.startswith(f"folded, {name}, which the forward pass leaves on the model, differs by ")


def test_a_norm_whose_input_is_stored_is_kept_in_half_precision_alone():
    """A model that does not run in float64."""

    def forward(self, x):
        self.place = self.conv(x.half())
        return self.norm(self.place)

    model = Code(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))
    (kept,) = fold(filled(model).half(), X.half()).kept
    assert kept.detail.startswith("folded, place, which")


def test_a_buffer_that_code_which_does_not_trace_writes():
    def forward(self, x):
        y = self.part(x)
        self.last.copy_(self.part[0].weight.sum())
        return y if x.sum() > 1e9 else y + 1

    model = Code(forward, part=nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    model.register_buffer("last", torch.zeros(()))
    (kept,) = fold(filled(model), X).kept
    assert kept.detail.startswith("folded, last, which")


def test_what_is_stored_behind_a_norm_does_not_keep_it():
    def forward(self, x):
        self.place = self.norm(self.conv(x))
        self.sizes = [self.place.shape, None, "name", torch]
        return self.place

    model = filled(Code(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4)))
    done = fold(model, X)
    assert not done.kept
    assert off(done.model, model, X) < 1e-5


def test_what_was_stored_before_and_is_not_written_does_not_count():
    def forward(self, x):
        return self.norm(self.conv(x)) + self.table

    model = filled(Code(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4)))
    model.table = torch.ones(())
    assert not fold(model, X).kept


def test_what_is_stored_otherwise_each_time_does_not_count():
    calls = itertools.count(1)

    def forward(self, x):
        self.place = torch.full((), float(next(calls)))
        return self.norm(self.conv(x))

    assert not fold(filled(Code(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))), X).kept
