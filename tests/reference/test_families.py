import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose

from batchnorm.reference import (
    batch_norm_axes,
    forward,
    group_norm_axes,
    instance_norm_axes,
    layer_norm_axes,
)

X = np.random.default_rng(0).normal(2.0, 3.0, size=(3, 4, 2, 5))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (batch_norm_axes(X, eps=0.01), F.batch_norm(torch.tensor(X), None, None, training=True, eps=0.01)),
        (layer_norm_axes(X, eps=0.01), F.layer_norm(torch.tensor(X), X.shape[1:], eps=0.01)),
        (instance_norm_axes(X, eps=0.01), F.instance_norm(torch.tensor(X), eps=0.01)),
        (group_norm_axes(X, 2, eps=0.01), F.group_norm(torch.tensor(X), 2, eps=0.01)),
    ],
    ids=["batch", "layer", "instance", "group"],
)
def test_each_norm_is_that_of_torch(ours, theirs):
    assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-13)


def test_batch_norm_is_the_transform():
    assert_allclose(batch_norm_axes(X), forward(X)[0], rtol=1e-12, atol=1e-14)


def test_group_norm_lies_between_layer_and_instance_norm():
    assert_allclose(group_norm_axes(X, 1), layer_norm_axes(X), rtol=1e-13)
    assert_allclose(group_norm_axes(X, 4), instance_norm_axes(X), rtol=1e-13)


def test_channels_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 channels do not divide into 3 groups"):
        group_norm_axes(X, 3)
