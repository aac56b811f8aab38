import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from batchnorm.reference import (
    backward,
    batch_weights,
    forward,
    ghost_backward,
    ghost_batches,
    ghost_forward,
    ghost_update_running,
    moments,
)
from reference.finite_differences import central_differences


def example(n, *, masked=False, seed=0):
    generator = np.random.default_rng(seed)
    shape = (n, 2, 3)
    mask = generator.random((n, 3)) < 0.7 if masked else None
    arguments = {
        "weight": generator.normal(1.0, 0.5, 2),
        "bias": generator.normal(0.0, 0.5, 2),
        "residual": generator.normal(size=shape),
        "mask": mask,
    }
    return generator.normal(1.0, 2.0, shape), arguments, generator.normal(size=shape)


@pytest.mark.parametrize("n", range(12))
@pytest.mark.parametrize("ghost_size", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("least", [1, 2])
def test_ghost_batches_cover_the_batch_once_in_order_and_evenly(n, ghost_size, least):
    groups = list(ghost_batches(n, ghost_size, least))
    assert [index for group in groups for index in range(n)[group]] == list(range(n))
    sizes = [group.stop - group.start for group in groups]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert min(sizes, default=n) >= min(n, least)
    fewest = -(-n // ghost_size)
    if least <= ghost_size and n >= least * fewest:
        assert len(sizes) == fewest
        assert max(sizes, default=0) <= ghost_size


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("n", [6, 7, 2])
def test_each_group_is_the_plain_transform(n, masked):
    ghost_size = 3
    x, arguments, dy = example(n, masked=masked)
    y, kept = ghost_forward(x, **arguments, ghost_size=ghost_size, activation="silu")
    gradients = ghost_backward(dy, kept)
    weight, bias = np.zeros(2), np.zeros(2)
    for group in {6: [slice(0, 3), slice(3, 6)], 7: [slice(0, 3), slice(3, 5), slice(5, 7)], 2: [slice(0, 2)]}[n]:
        own = {**arguments, "residual": arguments["residual"][group]}
        own["mask"] = None if arguments["mask"] is None else arguments["mask"][group]
        plain_y, saved = forward(x[group], **own, activation="silu")
        plain = backward(dy[group], saved)
        assert_array_equal(y[group], plain_y)
        assert_array_equal(gradients.x[group], plain.x)
        assert_array_equal(gradients.residual[group], plain.residual)
        weight, bias = weight + plain.weight, bias + plain.bias
    assert_allclose(gradients.weight, weight, rtol=1e-13)
    assert_allclose(gradients.bias, bias, rtol=1e-13)


def test_a_group_of_the_whole_batch_is_the_plain_transform():
    x, arguments, _ = example(5)
    assert_array_equal(ghost_forward(x, **arguments, ghost_size=5)[0], forward(x, **arguments)[0])
    assert_array_equal(ghost_forward(x, **arguments, ghost_size=99)[0], forward(x, **arguments)[0])


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_backward_is_the_slope_of_forward(masked):
    x, arguments, dy = example(5, masked=masked)
    _, kept = ghost_forward(x, **arguments, ghost_size=2, activation="tanh")
    gradients = ghost_backward(dy, kept)
    for name, value in [("x", x), *((name, arguments[name]) for name in ("weight", "bias", "residual"))]:

        def loss(changed, name=name):
            named = {"x": x, **arguments, name: changed}
            return float((dy * ghost_forward(**named, ghost_size=2, activation="tanh")[0]).sum())

        assert_allclose(getattr(gradients, name), central_differences(loss, value), rtol=1e-6, atol=1e-7)


def test_without_weight_bias_or_residual_there_is_no_gradient_of_them():
    x, _, dy = example(4)
    gradients = ghost_backward(dy, ghost_forward(x, ghost_size=2)[1])
    assert gradients.weight is None
    assert gradients.bias is None
    assert gradients.residual is None


@pytest.mark.parametrize("spatial", [(), (1,), (1, 1)])
def test_no_ghost_batch_of_one_value_while_that_can_be_avoided(spatial):
    x = np.random.default_rng(1).normal(size=(5, 3, *spatial))
    kept = ghost_forward(x, ghost_size=1)[1]
    assert kept.groups == [slice(0, 3), slice(3, 5)]
    assert ghost_forward(x[:1], bias=[1.0, 2.0, 3.0], ghost_size=1)[0].ravel().tolist() == [1.0, 2.0, 3.0]


def test_running_statistics_move_once_a_ghost_batch():
    x, _, _ = example(6)
    parts = [moments(x[group]) for group in ghost_batches(6, 2)]
    mean, var = ghost_update_running([1.0, 1.0], [2.0, 2.0], parts, momentum=0.2)
    of_start, of_parts = batch_weights(3, momentum=0.2)
    assert_allclose(mean, of_start * 1.0 + of_parts @ [part.mean for part in parts], rtol=1e-13)
    assert_allclose(var, of_start * 2.0 + of_parts @ [part.unbiased_variance for part in parts], rtol=1e-13)


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        list(ghost_batches(4, 0))
    _, kept = ghost_forward(np.zeros((0, 2)), ghost_size=2)
    with pytest.raises(ValueError, match="empty batch"):
        ghost_backward(np.zeros((0, 2)), kept)
