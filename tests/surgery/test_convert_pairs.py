"""``convert`` from every kind to every other: it works, and the way back is exact."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from batchnorm.surgery import convert
from surgery.convert_tools import (
    ARGUMENTS,
    BUILD,
    KINDS,
    WITH_ACTIVATION,
    WITHOUT_STATISTICS,
    assert_computes_the_same,
    assert_same,
    fill,
    images,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("b", KINDS)
@pytest.mark.parametrize("a", KINDS)
def test_there_and_back(a, b):
    dimensions = (KINDS.index(a) + KINDS.index(b)) % 3 + 1
    model = nn.Sequential(fill(BUILD[a](dimensions, 3, 1e-3, 0.3)), nn.ReLU()).train(KINDS.index(b) % 2 == 0)
    there = convert(model, b, dimensions=dimensions)
    assert (type(there[0]) is type(model[0])) == (a == b)
    assert convert(there, b) is not there
    back = convert(there, a, dimensions=dimensions)
    assert_same(model, back)
    x = images(dimensions)
    assert_computes_the_same(model, back, x)
    for each in (there, back):
        assert_computes_the_same(each, copy.deepcopy(each), x)
        assert_computes_the_same(each, pickle.loads(pickle.dumps(each)), x)


@pytest.mark.parametrize("a", WITH_ACTIVATION)
def test_there_and_back_with_an_activation(a):
    model = nn.Sequential(fill(BUILD[a](2, 3, activation="silu")))
    for b in WITH_ACTIVATION:
        there = convert(model, b, dimensions=2)
        assert there[0].activation == model[0].activation
        assert not isinstance(there[0], nn.modules.batchnorm._BatchNorm)
        assert_same(model, convert(there, a, dimensions=2))
        assert_computes_the_same(there, pickle.loads(pickle.dumps(there)), images())


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("b", KINDS)
@pytest.mark.parametrize("a", KINDS)
def test_the_new_layer_is_one_that_was_built_so(a, b, activation):
    if activation is not None and not {a, b} <= set(WITH_ACTIVATION):
        return
    own = {} if activation is None else {"activation": activation}
    model = fill(BUILD[a](2, 3, 1e-3, 0.3, bias=False, **own))
    new = convert(model, b, dimensions=2, **ARGUMENTS.get(b, {}) if a != b else {})
    built = BUILD[b](2, 3, 1e-3, 0.3, bias=False, **own)
    fill(built, 1)
    built.load_state_dict({**built.state_dict(), **new.state_dict()})
    assert type(new) is type(built)
    assert repr(new) == repr(built)
    x = images()
    for training in (True, False):
        assert_computes_the_same(new.train(training), built.train(training), x)
    assert_computes_the_same(new.train(), built.train(), x)


@pytest.mark.parametrize("a", WITHOUT_STATISTICS)
def test_there_and_back_without_statistics_and_affine(a):
    model = nn.Sequential(BUILD[a](2, 3, affine=False, track_running_stats=False))
    for b in WITHOUT_STATISTICS:
        there = convert(model, b, dimensions=2)
        assert_same(model, convert(there, a, dimensions=2))
        assert_computes_the_same(there, copy.deepcopy(there), images())


def test_a_long_way_round_and_back():
    model = nn.Sequential(fill(BUILD["ghost"](1, 3)), fill(BUILD["domain"](1, 3)), fill(BUILD["renorm"](1, 3)))
    model[1].domain = "night"
    new = model
    for kind in ("torch", "sync", "domain", "frozen", "torch-sync", "fused", "renorm", "ghost", "batch", "torch"):
        new = convert(new, kind)
    for position, kind in enumerate(("ghost", "domain", "renorm")):
        new = convert(new, kind, where=lambda path, layer, own=str(position): path == own)
    assert_same(model, new)


def test_a_converted_torch_layer_is_read_without_this_library():
    model = nn.Sequential(*(fill(BUILD[kind](2, 3)) for kind in KINDS if kind != "torch-sync"))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(convert(model, "torch", dimensions=2))
    torch.save(convert(model, "torch", dimensions=2), file)
    # Instructions of a pickle name a module by "c", its name and a line's end.
    assert b"torch.nn.modules.batchnorm" in file.getvalue()
    assert b"cbatchnorm" not in file.getvalue()
