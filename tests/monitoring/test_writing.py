"""What TensorBoard reads back, and other objects with its methods."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import batchnorm
from monitoring.networks import plain, train


def read(folder):
    return EventAccumulator(str(folder), {"scalars": 0, "histograms": 0, "tensors": 0}).Reload()


def with_nan():
    model = plain()
    model[0].norm.weight.data[0] = float("nan")
    return model


@pytest.mark.parametrize("make", [plain, with_nan])
def test_tensorboard_has_every_number(tmp_path, make):
    model, records = make(), []
    with SummaryWriter(tmp_path) as writer:
        with batchnorm.monitor(model, writer, every=2), batchnorm.monitor(model, records.append, every=2):
            train(model, 5)
        found = read(tmp_path)  # on disk already
    tags = found.Tags()
    written: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.summary.items():
            written.setdefault(f"batchnorm/{name}", []).append((record.step, value))
        for path, values in record.layers.items():
            for name, value in values.items():
                written.setdefault(f"batchnorm_{name}/{path}", []).append((record.step, value))
    assert set(tags["scalars"]) == set(written)
    for tag, expected in written.items():
        events = found.Scalars(tag)
        assert [event.step for event in events] == [step for step, _ in expected]
        np.testing.assert_allclose([event.value for event in events], [value for _, value in expected], rtol=1e-6)
    assert set(tags["histograms"]) <= {f"batchnorm_{name}/{n}.norm" for name in ("gamma", "beta") for n in (0, 1)}
    assert len(tags["histograms"]) == 4
    gammas = {record.step: record.gamma["0.norm"][np.isfinite(record.gamma["0.norm"])] for record in records}
    gammas = {step: gamma for step, gamma in gammas.items() if len(gamma)}
    for (step, gamma), event in zip(gammas.items(), found.Histograms("batchnorm_gamma/0.norm"), strict=True):
        assert event.step == step
        assert event.histogram_value.num == len(gamma)
        assert event.histogram_value.min == gamma.min()
        assert event.histogram_value.max == gamma.max()
        assert sum(event.histogram_value.bucket) == len(gamma)
        assert event.histogram_value.sum == pytest.approx(gamma.sum())
        assert event.histogram_value.sum_squares == pytest.approx((gamma**2).sum())
        edges = np.array([float("-inf"), *event.histogram_value.bucket_limit])
        edges[-1] += 1e-6
        np.testing.assert_array_equal(np.histogram(gamma, edges)[0], event.histogram_value.bucket)
    text = found.Tensors("batchnorm/worst/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert f"`{records[-1].worst['smallest_variance']}`" in text
    assert all(str(trouble) in text for trouble in records[-1].troubles)


class Scalars:
    """Not torch's; its histograms take no bins."""

    def __init__(self):
        self.scalars, self.histograms, self.flushed = {}, {}, 0

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def add_histogram(self, tag, values, step):
        self.histograms[tag, step] = values

    def flush(self):
        self.flushed = len(self.scalars)


class Subclass(SummaryWriter):
    """What it overrides is called."""

    def add_scalar(self, tag, *others):
        super().add_scalar(f"mine/{tag}", *others)


def test_any_object_with_these_methods(tmp_path):
    model, writer, records = plain(), Scalars(), []
    with batchnorm.monitor(model, writer), batchnorm.monitor(model, records.append):
        train(model, 1)
    assert writer.scalars["batchnorm_dead/0.norm", 0] == 0
    assert writer.scalars["batchnorm/troubles", 0] == 0
    np.testing.assert_array_equal(writer.histograms["batchnorm_beta/1.norm", 0], records[0].beta["1.norm"])
    assert writer.flushed == len(writer.scalars)
    with Subclass(tmp_path) as own, batchnorm.monitor(model, own):
        train(model, 1)
    tags = read(tmp_path).Tags()
    assert all(tag.startswith("mine/") for tag in tags["scalars"])
    assert len(tags["histograms"]) == 4


def test_a_hundred_layers_are_ten_sections(tmp_path):
    """TensorBoard groups by what stands before the first slash."""
    model = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(100)))
    with SummaryWriter(tmp_path) as writer, batchnorm.monitor(model, writer):
        model(torch.randn(8, 2)).sum().backward()
    tags = read(tmp_path).Tags()
    sections = {tag.split("/")[0] for tag in (*tags["scalars"], *tags["histograms"])}
    assert len(sections) <= 12
    assert len([tag for tag in tags["scalars"] if tag.startswith("batchnorm/")]) <= 12
