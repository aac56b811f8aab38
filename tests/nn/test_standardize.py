"""``Standardize``: exact however the data is cut, invertible, and all or nothing."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm import Standardize
from batchnorm.errors import ArgumentError, NotFittedError, ShapeError
from contract import NoSynchronization

SCALES = torch.tensor([1.0, 1e-5, 1e5, 3.0], dtype=torch.float64)
OFFSETS = torch.tensor([0.0, 1.0, -1e6, 1e3], dtype=torch.float64)


def data(rows: int = 200) -> torch.Tensor:
    return torch.randn(rows, 4, dtype=torch.float64) * SCALES + OFFSETS


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_the_cut_into_batches_does_not_matter(sizes: list[int]) -> None:
    torch.manual_seed(0)
    x = data(sum(sizes) + 1)
    layer = Standardize(4).fit([*x.split([*sizes, 1])])
    np.testing.assert_allclose(layer.mean, x.numpy().mean(0), rtol=1e-12, atol=1e-12)
    if len(x) > 1:
        np.testing.assert_allclose(layer.var, x.numpy().var(0), rtol=1e-7)
    assert int(layer.count) == len(x)


def test_output_is_standardised_and_comes_back() -> None:
    x = data()
    layer = Standardize(4).fit(x)
    y = layer(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(layer.inverse(y), x)


def test_float32_input_with_a_large_mean_keeps_its_spread() -> None:
    x = (torch.randn(500, 1, dtype=torch.float64) + 1e6).float()
    y = Standardize(1).fit(x)(x)
    assert y.dtype == torch.float32
    wanted = (x.double() - x.double().mean()) / x.double().std(correction=0)
    torch.testing.assert_close(y, wanted.float(), rtol=1e-6, atol=1e-6)


def test_images_pairs_and_generators() -> None:
    x = torch.randn(12, 3, 4, 5)
    pairs = ((part, torch.zeros(len(part))) for part in x.split(5))
    layer = Standardize(3).fit(pairs)
    torch.testing.assert_close(layer.mean, x.double().mean((0, 2, 3)))
    assert int(layer.count) == 12 * 4 * 5


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3e-7])
def test_a_constant_feature_becomes_zero(value: float) -> None:
    x = torch.full((1000, 2), value)
    x[:, 1] = torch.randn(1000)
    layer = Standardize(2).fit(x.split(7))
    assert float(layer.std[0]) == 1
    torch.testing.assert_close(layer(x)[:, 0], torch.zeros(1000), atol=1e-9, rtol=0)
    torch.testing.assert_close(layer.inverse(layer(x)), x)


def test_a_feature_constant_up_to_rounding_is_constant() -> None:
    x = torch.tensor([[0.3], [0.1 + 0.2]], dtype=torch.float64).repeat(50, 1)
    assert float(x.std()) > 0
    torch.testing.assert_close(Standardize(1).fit(x)(x), torch.zeros_like(x), atol=1e-15, rtol=0)


def test_nothing_is_lost_when_fitting_fails() -> None:
    layer = Standardize(4).fit(data())
    before = copy.deepcopy(layer.state_dict())

    def interrupted() -> object:
        yield data()
        raise KeyboardInterrupt

    broken = data()
    broken[3, 2] = float("nan")
    for batches, kind in (
        (interrupted(), KeyboardInterrupt),
        ([data(), broken], ArgumentError),
        ([data(), data()[:, :3]], ShapeError),
        ([], ArgumentError),
        ([data()[:0]], ArgumentError),
    ):
        with pytest.raises(kind):
            layer.fit(batches)
        for name, value in layer.state_dict().items():
            assert torch.equal(value, before[name])
    with pytest.raises(ArgumentError, match=r"batch 1 .* feature 2"):
        layer.fit([data(), broken])


def test_integers_become_floating_point() -> None:
    """Raw images are uint8: rounded back to it, standardised values would be 0 or wrap around."""
    x = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    layer = Standardize(3).fit(x)
    assert layer(x).dtype == torch.float32
    torch.testing.assert_close(layer(x), layer(x.double()).float())
    with pytest.raises(ArgumentError, match="dict"):
        layer.fit([{"input": x}])


def test_unfitted_and_misfitting_use_is_refused() -> None:
    with pytest.raises(NotFittedError, match="fit"):
        Standardize(4)(data())
    with pytest.raises(NotFittedError):
        Standardize(4).inverse(data())
    with pytest.raises(ShapeError, match=r"\(N, 3"):
        Standardize(3).fit(data())
    with pytest.raises(ArgumentError):
        Standardize(0)


def test_statistics_survive_half_precision_checkpoints_and_pickle() -> None:
    x = data()
    layer = Standardize(4).fit(x)
    mean = layer.mean.clone()
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.float):
        cast(torch.nn.Sequential(layer, torch.nn.Linear(4, 1)))
        assert layer.mean.dtype == torch.float64
        assert torch.equal(layer.mean, mean)
    other = Standardize(4)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_compiles_and_has_a_gradient() -> None:
    x = data().float().requires_grad_()
    layer = Standardize(4).fit(x.detach())
    torch.compile(layer, fullgraph=True, backend="aot_eager")(x).sum().backward()
    torch.testing.assert_close(x.grad[0].double(), 1 / layer.std, rtol=1e-6, atol=0)


def test_nothing_waits_for_the_device_and_nothing_unfitted_passes_a_compiler() -> None:
    layer = Standardize(4)
    with pytest.raises(NotFittedError):
        torch.compile(layer, backend="aot_eager")(data())
    layer.fit(data())
    with NoSynchronization():
        layer.inverse(layer(data()))
