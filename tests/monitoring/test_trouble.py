"""What is called trouble, and what is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import batchnorm
from monitoring.networks import NETWORKS, images, train


def troubles(model, x=None, *, settled=True):
    """Of one step of a model whose norms have seen many batches."""
    for layer in model.modules():
        seen = getattr(layer, "num_batches_tracked", None)
        if settled and seen is not None:
            seen.fill_(1000)
    records, told = [], []
    with batchnorm.monitor(model, records.append, on_trouble=told.extend):
        model(images() if x is None else x).sum().backward()
    assert told == list(records[0].troubles)
    assert records[0].summary["troubles"] == len(told)
    return {(each.layer, each.rule, each.name): each for each in told}


def norm(**values):
    layer = nn.BatchNorm2d(4)
    layer.running_mean.add_(0.01)
    for name, value in values.items():
        getattr(layer, name).data.fill_(value)
    return nn.Sequential(layer)


def test_a_healthy_norm_has_none():
    assert troubles(norm()) == {}


@pytest.mark.parametrize(
    ("values", "rule", "name"),
    [
        ({"running_mean": 5.0}, "BN001", "stale-statistics"),
        ({"running_var": 0.1}, "BN001", "stale-statistics"),
        ({"running_var": 10.0}, "BN001", "stale-statistics"),
        ({"weight": 1e-4}, "BN020", "dead-channels"),
        ({"running_var": float("nan")}, "BN004", "poisoned-statistics"),
        ({"bias": float("inf")}, "", "nonfinite-parameters"),
    ],
)
def test_each_kind(values, rule, name):
    (key,) = found = troubles(norm(**values))
    assert key == ("0", rule, name)
    assert found[key].value > found[key].threshold or found[key].value == found[key].threshold == 0.5
    assert str(found[key]).startswith("step 0, 0: ")
    assert found[key].message.endswith(".")


def test_input_that_is_not_finite_or_constant():
    x = images()
    x[0, 0, 0, 0] = float("nan")
    assert [name for _, _, name in troubles(norm(), x)] == ["nonfinite-input"]
    x = images()
    x[:, :2] = 3.0
    assert ("0", "BN020", "dead-channels") in troubles(norm(running_mean=3.0), x)


def test_what_has_just_begun_is_no_trouble():
    """Statistics on their way from 0 and 1, and a gamma that begins at 0."""
    assert troubles(norm(running_mean=5.0, weight=0.0), settled=False) == {}
    frozen = norm(running_mean=5.0)
    frozen[0].eval()
    assert [name for _, _, name in troubles(frozen, settled=False)] == ["stale-statistics"]


def test_two_samples_scatter():
    torch.manual_seed(0)
    for seed in range(50):
        x = images(2, seed).mean((2, 3), keepdim=True) * 5  # each sample of one value: the worst that can be
        assert troubles(norm(), x) == {}


def test_only_what_is_new_is_told():
    model, told = norm(running_mean=5.0), []
    model[0].momentum = 0.0
    with batchnorm.monitor(model, lambda record: None, every=1, on_trouble=told.append):
        for number in range(4):
            if number == 2:
                model[0].weight.data.fill_(0.0)
            model(images()).sum().backward()
    assert [[each.name for each in some] for some in told] == [["stale-statistics"], ["dead-channels"]]
    assert [some[0].step for some in told] == [0, 2]


@pytest.mark.parametrize("name", NETWORKS)
def test_healthy_training_is_no_trouble(name):
    torch.manual_seed(0)
    model, told = NETWORKS[name](), []
    if name != "frozen":
        train(model, 60)  # past the beginning
    with batchnorm.monitor(model, lambda record: None, every=5, on_trouble=told.extend):
        train(model, 20)
    assert told == []
