"""What is written of a step is what NumPy finds in the inputs, the buffers and the gradients."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.monitoring import Record
from monitoring.networks import Shared, images


def observed(model, x, *, lose=lambda output: output.square().sum(), **arguments) -> Record:
    records: list[Record] = []
    with batchnorm.monitor(model, records.append, **arguments):
        lose(model(x)).backward()
    assert len(records) == 1
    return records[0]


def moments(x):
    flat = x.detach().double().numpy().transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
    return flat.mean(1), flat.var(1, ddof=1)


@pytest.mark.parametrize("make", [nn.BatchNorm2d, batchnorm.BatchNorm2d, batchnorm.BatchNormAct2d])
def test_the_batch_against_the_running_statistics(make):
    norm = make(4, eps=0.01)
    running_mean, running_var = np.array([0.0, 1.0, -1.0, 2.0]), np.array([1.0, 4.0, 0.25, 9.0])
    norm.running_mean.copy_(torch.tensor(running_mean))
    norm.running_var.copy_(torch.tensor(running_var))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 1e-4, 0.0, -2.0]))
    x = images() * 2 + 1
    record = observed(nn.Sequential(norm), x)
    mean, var = moments(x)
    drift = np.abs(mean - running_mean) / np.sqrt(running_var + 0.01)
    values = record.layers["0"]
    expected = {
        "drift": np.sqrt((drift**2).mean()),
        "largest_drift": drift.max(),
        "variance_ratio": np.exp(np.log((var + 0.01) / (running_var + 0.01)).mean()),
        "smallest_variance": var.min(),
        "largest_variance": var.max(),
        "dead": 0.5,
        "constant": 0.0,
        "nonfinite": 0.0,
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-5), name
    np.testing.assert_allclose(record.gamma["0"], [1.0, 1e-4, 0.0, -2.0], rtol=1e-6)
    np.testing.assert_array_equal(record.beta["0"], 0)
    assert record.step == 0


@pytest.mark.parametrize("make", [nn.BatchNorm2d, batchnorm.BatchNorm2d])
def test_gradients_are_root_mean_squares(make):
    x, weights = images().requires_grad_(), images(seed=7) * 1e-23
    norm = make(4)
    kept = []
    model = nn.Sequential(nn.Identity(), norm, nn.ReLU(inplace=True))

    def lose(output):
        return (output * weights).sum()

    record = observed(model, x, lose=lose)
    copy = make(4)
    middle = copy(x.detach().requires_grad_())
    middle.retain_grad()
    middle.register_hook(kept.append)
    lose(torch.relu(middle)).backward()
    values = record.layers["1"]
    assert values["gradient_output"] == pytest.approx(float(kept[0].double().square().mean().sqrt()), rel=1e-5, abs=0)
    assert values["gradient_input"] == pytest.approx(float(x.grad.double().square().mean().sqrt()), rel=1e-5, abs=0)
    assert x._backward_hooks is None or not x._backward_hooks  # a leaf, which outlives its graph


def test_a_fused_norm_has_no_gradient_at_its_output():
    """It has none while it waits for what follows, and is to wait as ever."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), batchnorm.FusingBatchNorm2d(4), nn.ReLU())
    (values,) = observed(model, images()).layers.values()
    assert "gradient_input" in values
    assert "gradient_output" not in values


def test_calls_of_a_shared_layer_are_one_set_of_values():
    model = Shared()
    model.conv.weight.data.mul_(5)
    x = images()
    with torch.no_grad():
        both = torch.cat([x, model.conv(nn.functional.batch_norm(x, None, None, training=True))])
    values = observed(model, x).layers["norm"]
    _, var = moments(both)
    assert values["largest_variance"] == pytest.approx(var.max(), rel=1e-4)


def test_masked_positions_are_left_out():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = batchnorm.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(x, mask=torch.arange(5).expand(len(x), 5, 5) < 3)

    x = images()
    values = observed(Masked(), torch.cat([x[..., :3], 100 + x[..., 3:]], -1)).layers["norm"]
    assert values["largest_variance"] == pytest.approx(moments(x[..., :3])[1].max(), rel=1e-5)


def test_no_drift_before_the_statistics_moved_or_without_any():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False))
    records: list[Record] = []
    with batchnorm.monitor(model, records.append, every=1):
        for _ in range(2):
            model(images()).sum().backward()
    first, second = records
    assert "drift" not in first.layers["0"]
    assert "drift" in second.layers["0"]
    assert "drift" not in second.layers["1"]
    assert second.worst["drift"] == "0"


def test_what_is_not_finite_is_nan_and_counted():
    x = images()
    x[0, 1] = float("nan")
    x[0, 2] = float("inf")
    model = nn.Sequential(batchnorm.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[0].running_mean.fill_(1.0)
    record = observed(model, x)
    values = record.layers["0"]
    assert values["nonfinite"] == 0.5
    assert np.isnan(values["drift"])
    assert np.isnan(record.summary["drift"])
    assert record.summary["nonfinite"] == 0.5


def test_half_precision_does_not_overflow():
    model = nn.Sequential(nn.BatchNorm2d(4))
    with torch.autocast("cpu", torch.bfloat16):
        values = observed(model, (images() * 1e4).bfloat16(), lose=lambda y: y.float().sum()).layers["0"]
    assert values["largest_variance"] == pytest.approx(1e8, rel=0.5)
    assert values["nonfinite"] == 0


def test_the_summary_names_the_worst_layer():
    model = nn.Sequential(*(nn.BatchNorm2d(4) for _ in range(3)))
    for layer, mean in zip(model, (0.1, 3.0, 0.2), strict=True):
        layer.running_mean.fill_(mean)
    model[2].running_var.fill_(1e-3)
    record = observed(model, images())
    assert record.worst["largest_drift"] in ("1", "2")
    assert record.summary["drift"] == max(values["drift"] for values in record.layers.values())
    assert record.worst["variance_ratio"] == "2"
    gradients = [values["gradient_input"] for path, values in record.layers.items() if path != "0"]
    assert record.summary["gradient_first_to_last"] == pytest.approx(gradients[0] / gradients[-1])


def test_not_a_number_is_worst():
    model = nn.Sequential(*(nn.BatchNorm2d(4) for _ in range(3)))
    model[0].running_mean.fill_(3.0)
    model[1].running_mean.fill_(float("nan"))
    record = observed(model, images())
    assert record.worst["drift"] == "1"
    assert np.isnan(record.summary["drift"])


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (1, 4, 5, 5)])
def test_small_batches(shape):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    records: list[Record] = []
    with batchnorm.monitor(model, records.append, every=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(torch.randn(shape)).sum().backward()
        model(images()).sum().backward()
    assert records[-1].layers["1"]["nonfinite"] == 0
