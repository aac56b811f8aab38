"""``adapt``: the source's statistics and the target's, weighed by the prior and the number of samples."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm import adapt, recalibrate
from batchnorm.errors import ArgumentError
from population.recalibrate_tools import ORDERS, close, expected, images, network


def trained() -> torch.nn.Sequential:
    model = network()
    for _ in range(3):
        model(images(8))
    return model


@settings(max_examples=25, deadline=None)
@given(
    prior=st.floats(0, 1e6),
    samples=st.integers(1, 9),
    batch=st.integers(1, 9),
    order=st.sampled_from(ORDERS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_formula(prior, samples, batch, order, dtype):
    torch.manual_seed(0)
    model = trained().to(dtype)
    source, x = copy.deepcopy(model), images(samples).to(dtype) + 2
    adapt(model, x.split(batch), prior=prior, order=order)
    w = prior / (prior + samples)
    for index in (1, 5) if order == "layer-by-layer" else (1,):
        mean, var = expected([model[:index].eval()(x).detach()])
        old = source[index]
        blended = (
            w * old.running_mean.double().numpy() + (1 - w) * mean,
            w * old.running_var.double().numpy() + (1 - w) * var,
        )
        assert close(model[index], blended, 1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_the_ends(order):
    model = trained()
    source, fresh, x = copy.deepcopy(model), copy.deepcopy(model), images(9)
    adapt(model, x.split(4), prior=math.inf, order=order)
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), source.buffers(), strict=True))
    adapt(model, x.split(4), order=order)
    recalibrate(fresh, x.split(4), order=order)
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), fresh.buffers(), strict=True))


def test_the_count_stays_with_a_prior():
    model = trained()
    adapt(model, images(4), prior=4)
    assert int(model[1].num_batches_tracked) == 3
    adapt(model, images(4))
    assert int(model[1].num_batches_tracked) == 1


@pytest.mark.parametrize("prior", [-1, math.nan])
def test_no_such_prior(prior):
    with pytest.raises(ArgumentError, match="prior is"):
        adapt(network(), images(4), prior=prior)
