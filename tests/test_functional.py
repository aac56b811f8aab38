"""What ``batch_norm`` refuses, in what words, and the arguments that torch's does not have."""

import pytest
import torch

import batchnorm
from batchnorm.errors import ArgumentError, DtypeError, ShapeError, TooFewValuesError
from batchnorm.functional import batch_norm

X = torch.randn(4, 3, 5)
M, V = torch.zeros(3), torch.ones(3)


@pytest.mark.parametrize(
    ("kind", "says", "arguments", "named"),
    [
        (ShapeError, r"\(5,\).*unsqueeze", (torch.randn(5), M, V), {}),
        (ShapeError, r"running_mean.*\(4,\).*3 channels.*3 elements", (X, torch.zeros(4), V), {}),
        (ShapeError, r"weight.*\(3, 1\)", (X, M, V, torch.ones(3, 1)), {}),
        (ShapeError, "transpose", (X.transpose(1, 2), M, V), {}),
        (DtypeError, "int64", (X.long(), M, V), {}),
        (DtypeError, "float8", (X.to(torch.float8_e4m3fn), M, V), {}),
        (ArgumentError, "num_batches_tracked", (X, M, V), {"training": True, "momentum": None}),
        (DtypeError, "complex64", (X.to(torch.complex64), M, V), {}),
        (DtypeError, "weight is torch.float64", (X, M, V, V.double()), {}),
        (DtypeError, "bias is torch.bfloat16", (X, M, V, None, V.bfloat16()), {}),
        (ArgumentError, "running statistics", (X, None, None), {}),
        (ArgumentError, "only one", (X, M, None), {"training": True}),
        (ArgumentError, "eps", (X, M, V), {"eps": -1.0}),
        (ArgumentError, "eps", (X, M, V), {"training": True, "eps": 0.0}),
        (ArgumentError, "nonfinite", (X, M, V), {"nonfinite": "ignore"}),
        (ArgumentError, "softplus", (X, M, V), {"activation": "softplus"}),
        (ArgumentError, "Softplus", (X, M, V), {"activation": torch.nn.Softplus()}),
        (ArgumentError, "momentum", (X, M, V), {"training": True, "momentum": torch.ones(3)}),
        (TooFewValuesError, "more than 1 value per channel", (X[:1, :, :1], M, V), {"training": True}),
        (ShapeError, "residual.*broadcast", (X, M, V), {"residual": X[:1]}),
        (DtypeError, "residual is torch.float64", (X, M, V), {"residual": X.double()}),
        (ShapeError, r"mask.*\(4, 5\)", (X, M, V), {"mask": torch.ones(4, 3, 5, dtype=torch.bool)}),
        (DtypeError, "mask.bool", (X, M, V), {"mask": torch.ones(4, 5)}),
    ],
)
def test_refusals(kind: type[Exception], says: str, arguments: tuple, named: dict) -> None:
    mean, var = M.clone(), V.clone()
    with pytest.raises(kind, match=f"(?s){says}") as raised:
        batch_norm(*arguments, **named)
    assert "Mend: " in str(raised.value)
    assert torch.equal(M, mean)
    assert torch.equal(V, var)


def test_a_mask_may_have_the_channel_dimension() -> None:
    mask = torch.rand(4, 5) < 0.7
    torch.testing.assert_close(
        batch_norm(X, None, None, training=True, mask=mask.unsqueeze(1)),
        batch_norm(X, None, None, training=True, mask=mask),
    )


def test_a_mask_of_whole_samples_on_vectors() -> None:
    x = torch.randn(6, 3)
    mask = torch.tensor([True, True, False, True, False, True])
    output = batch_norm(x, None, None, training=True, mask=mask)
    torch.testing.assert_close(output[mask], batch_norm(x[mask], None, None, training=True))


def test_momentum_as_a_tensor_is_momentum_as_a_number() -> None:
    runs = []
    for momentum in (0.25, torch.tensor(0.25)):
        mean, var, seen = M.clone(), V.clone(), torch.tensor(0)
        batch_norm(X, mean, var, training=True, momentum=momentum, num_batches_tracked=seen)
        runs.append((mean, var, seen))
    torch.testing.assert_close(*runs)
    assert int(runs[0][2]) == 1


def test_cumulative_average_ignores_batches_that_were_skipped() -> None:
    """momentum=None divides by the number of batches that entered: one that was kept out must not count."""
    layer = batchnorm.BatchNorm1d(3, momentum=None)
    batches = [torch.randn(8, 3) for _ in range(3)]
    for batch in batches[:2]:
        layer(batch)
    layer(torch.full((8, 3), float("nan")))
    layer(batches[2])
    wanted = torch.stack([batch.mean(0) for batch in batches]).mean(0)
    torch.testing.assert_close(layer.running_mean, wanted)
    assert int(layer.num_batches_tracked) == 3


def test_half_precision_statistics_are_float32() -> None:
    """The mean of 2^16 values near 300 has no place in float16, whose largest number is 65504."""
    x = (torch.randn(65536, 2) + 300).half()
    mean, var = torch.zeros(2), torch.ones(2)
    batch_norm(x, mean, var, training=True, momentum=1.0)
    torch.testing.assert_close(mean, x.double().mean(0).float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(var, x.double().var(0).float(), rtol=1e-4, atol=0)


def test_tiny_variance_is_not_lost_in_eps() -> None:
    x = torch.randn(1000, 2) * 1e-9
    mean, var = torch.zeros(2), torch.ones(2)
    batch_norm(x, mean, var, training=True, momentum=1.0)
    torch.testing.assert_close(var, x.double().var(0).float(), rtol=1e-5, atol=0)


def test_one_value_under_a_mask_is_no_error() -> None:
    """The count under a mask lives on the device: what depends on it cannot raise, here or with more samples."""
    x, bias = torch.randn(1, 3), torch.randn(3)
    output = batch_norm(x, None, None, None, bias, training=True, mask=torch.ones(1, dtype=torch.bool))
    torch.testing.assert_close(output[0], bias)


def test_momentum_none_is_the_cumulative_average() -> None:
    mean, var, seen = M.clone(), V.clone(), torch.tensor(0)
    batches = [torch.randn(8, 3) for _ in range(4)]
    for batch in batches:
        batch_norm(batch, mean, var, training=True, momentum=None, num_batches_tracked=seen)
    torch.testing.assert_close(mean, torch.stack([batch.mean(0) for batch in batches]).mean(0))
    torch.testing.assert_close(var, torch.stack([batch.var(0) for batch in batches]).mean(0))
