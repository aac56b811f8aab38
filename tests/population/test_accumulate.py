"""``accumulate_statistics``: one update by all micro-batches, as if they had been one batch."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm import accumulate_statistics
from batchnorm.errors import ArgumentError
from population.recalibrate_tools import expected, images, network, picture


class OwnForward(torch.nn.BatchNorm2d):
    """A subclass that calls torch's function itself."""

    def forward(self, x):
        self.num_batches_tracked.add_(1)
        y = torch.nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return torch.relu(y)


NORMS = [
    torch.nn.BatchNorm2d,
    OwnForward,
    batchnorm.BatchNorm2d,
    batchnorm.BatchNormAct2d,
    batchnorm.FusingBatchNorm2d,
    batchnorm.BatchRenorm2d,
    batchnorm.SyncBatchNorm,
    batchnorm.DomainBatchNorm2d,
]


def moved(layer, values, momentum):
    """Running mean and variance after one update by all values, in float64."""
    mean, var = expected(values)
    return (
        (1 - momentum) * layer.running_mean.double().numpy() + momentum * mean,
        (1 - momentum) * layer.running_var.double().numpy() + momentum * var,
    )


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 11), max_size=4),
    momentum=st.sampled_from([0.1, 1.0, None]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shift=st.sampled_from([0.0, 30.0]),
)
def test_as_if_it_had_been_one_batch(norm, cuts, momentum, dtype, shift):
    torch.manual_seed(0)
    momentum = 0.3 if norm is OwnForward and momentum is None else momentum
    layer, x = norm(2, momentum=momentum).to(dtype), images(12).to(dtype) + shift
    for _ in range(2):
        layer(images(4).to(dtype))
    layer.zero_grad()
    mean, var = moved(layer, [x], momentum if momentum is not None else 1 / 3)
    parts, plain = torch.tensor_split(x, sorted(set(cuts))), copy.deepcopy(layer)
    with accumulate_statistics(layer):
        outputs = [layer(part) for part in parts]
        assert int(layer.num_batches_tracked) == 2
    rtol = 2e-6 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(layer.running_mean.double(), mean, rtol=rtol)
    np.testing.assert_allclose(layer.running_var.double(), var, rtol=rtol)
    assert int(layer.num_batches_tracked) == 3
    if norm is not batchnorm.BatchRenorm2d:  # which normalises by the running statistics too
        for output, part in zip(outputs, parts, strict=True):
            assert torch.equal(output + 0, plain(part) + 0)


def test_parts_of_ghost_batches_count_alike():
    norm = batchnorm.GhostBatchNorm2d(2, ghost_size=4, momentum=1.0)
    x = images(12)
    with accumulate_statistics(norm):
        norm(x[:8])
        norm(x[8:])
    found = [expected([part]) for part in x.split(4)]
    np.testing.assert_allclose(norm.running_mean, np.mean([mean for mean, _ in found], axis=0), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, np.mean([var for _, var in found], axis=0), rtol=1e-5)
    assert int(norm.num_batches_tracked) == 1


def test_masks_are_counted():
    norm, x = batchnorm.BatchNorm2d(2, momentum=1.0), images(12)
    mask = torch.rand(12, 7, 7) < 0.5
    mask[6:] = torch.rand(6, 7, 7) < 0.05
    with accumulate_statistics(norm):
        for part, valid in zip(x.split(6), mask.split(6), strict=True):
            norm(part, mask=valid)
    values = x.movedim(1, -1)[mask]
    np.testing.assert_allclose(norm.running_mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, values.var(0), rtol=1e-5)


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d, batchnorm.FusingBatchNorm2d])
def test_an_exception_moves_nothing(norm):
    model = network(norm)
    model(images(5))
    for error in (ValueError(), KeyboardInterrupt()):
        for wrong in (False, True):
            before = picture(model)
            with pytest.raises((type(error), RuntimeError)), accumulate_statistics(model):  # noqa: PT012
                model(images(5))
                model(images(5)[:, : 1 if wrong else 2])
                raise error
            assert picture(model) == before


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d])
@pytest.mark.parametrize("where", [1, 5])
def test_interrupted_inside_a_norm(norm, where):
    model, x = network(norm), images(5)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = picture(model)
    with pytest.raises(KeyboardInterrupt), accumulate_statistics(model):  # noqa: PT012
        model(x)
        handle = model[where].register_forward_hook(interrupt)
        try:
            model(x)
        finally:
            handle.remove()
    assert picture(model) == before


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d])
def test_a_failed_batch_does_not_count_when_the_user_goes_on(norm):
    layer, x = norm(2, momentum=1.0), images(6)
    with accumulate_statistics(layer):
        layer(x[:3])
        with pytest.raises((ValueError, RuntimeError)):
            layer(x[:, :1])
        layer(x[3:])
    np.testing.assert_allclose(layer.running_var, expected([x])[1], rtol=1e-5)


def test_interrupted_while_the_statistics_are_written(monkeypatch):
    from batchnorm.ops import running
    from batchnorm.population import sinks

    model, update, calls = network(batchnorm.BatchNorm2d), running.update_running, 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(sinks, "running_mover", lambda mean, direct: interrupted)
    before = picture(model)
    with pytest.raises(KeyboardInterrupt), accumulate_statistics(model):
        model(images(5))
    assert picture(model) == before


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d, batchnorm.FusingBatchNorm2d])
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_counts_nothing(norm, reentrant):
    layer, x = norm(2, momentum=1.0), images(6)
    with accumulate_statistics(layer):
        for part in x.split(3):
            part.requires_grad_()
            checkpoint(lambda part: torch.relu(layer(part)), part, use_reentrant=reentrant).sum().backward()
    np.testing.assert_allclose(layer.running_mean, expected([x])[0], rtol=1e-5)
    np.testing.assert_allclose(layer.running_var, expected([x])[1], rtol=1e-5)
    assert int(layer.num_batches_tracked) == 1


def test_a_norm_that_waits_is_computed_in_time():
    layer, x = batchnorm.FusingBatchNorm2d(2, momentum=1.0), images(12)
    early = layer(x[:6] + 100)
    with accumulate_statistics(layer):
        layer(x[:6])
        late = layer(x[6:])
    torch.relu(early + late)
    np.testing.assert_allclose(layer.running_mean, expected([x])[0], rtol=1e-5)
    assert int(layer.num_batches_tracked) == 2


def test_a_batch_that_is_not_finite_is_left_out():
    norm, x = batchnorm.BatchNorm2d(2, momentum=1.0), images(9)
    x[4] = torch.nan
    with accumulate_statistics(norm):
        for part in x.split(3):
            norm(part)
    np.testing.assert_allclose(norm.running_var, expected([x[:3], x[6:]])[1], rtol=1e-5)
    before = picture(norm)
    with accumulate_statistics(norm):
        norm(x[3:6])
    assert picture(norm) == before
    torches = torch.nn.BatchNorm2d(2)
    with accumulate_statistics(torches):
        torches(x[3:6])
    assert torches.running_mean.isnan().all()


def test_layers_in_evaluation_mode_stay():
    model = network(batchnorm.BatchNorm2d)
    model[1].eval()
    batchnorm.freeze(model, where=lambda path, layer: path == "5")
    before = picture(model)
    with accumulate_statistics(model):
        model(images(4))
    assert picture(model) == before


def test_each_domain_has_its_own():
    norm = batchnorm.DomainBatchNorm2d(2, momentum=1.0)
    x = images(9)
    with accumulate_statistics(norm):
        norm(x[:3])
        with batchnorm.domain(norm, "target"):
            norm(x[3:6])
        norm(x[6:])
    np.testing.assert_allclose(norm.running_var, expected([x[:3], x[6:]])[1], rtol=1e-5)
    with batchnorm.domain(norm, "target"):
        np.testing.assert_allclose(norm.running_var, expected([x[3:6]])[1], rtol=1e-5)
        assert int(norm.num_batches_tracked) == 1


def test_half_precision_buffers_take_exact_moments():
    layer, x = batchnorm.BatchNorm2d(2, momentum=1.0), images(12)
    layer.running_mean, layer.running_var = torch.zeros(2).bfloat16(), torch.ones(2).bfloat16()
    with accumulate_statistics(layer):
        for part in x.split(3):
            layer(part)
    assert torch.equal(layer.running_var, torch.tensor(expected([x])[1]).to(layer.running_var.dtype))


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d])
def test_copies_made_inside_move_their_own(norm):
    model = torch.nn.Sequential(norm(2))
    with accumulate_statistics(model):
        model(images(3))
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for each in copies:
        each(images(3))
        assert int(each[0].num_batches_tracked) == 1


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d])
def test_not_within_itself(norm):
    model = network(norm)
    with accumulate_statistics(model):
        with pytest.raises(ArgumentError, match=r"statistics of 5 \(BatchNorm2d\) are accumulated already"):
            accumulate_statistics(torch.nn.ModuleDict({"5": model[5]})).__enter__()
        model(images(3))
    assert int(model[5].num_batches_tracked) == 1


def test_what_cannot_be_watched():
    with (
        pytest.raises(ArgumentError, match="cannot be watched"),
        accumulate_statistics(torch.nn.DataParallel(network())),
    ):
        pass


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d])
def test_compiled_before_inside_and_after(norm):
    """As without a compiler, and not compiled again in every step (which ended at the limit of recompilations)."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), norm(2))
    plain, x = copy.deepcopy(model), images(9)
    compiled = torch.compile(model, backend=backend)
    counts = []
    for _ in range(6):
        for each in (compiled, plain):
            each(x)
            with accumulate_statistics(each):
                for part in x.split(3):
                    each(part)
        counts.append(len(graphs))
    assert counts[1] == counts[-1]
    assert int(model[1].num_batches_tracked) == 12
    torch.testing.assert_close(model[1].running_var, plain[1].running_var)


def test_a_full_graph_refuses_a_norm_of_ours():
    torch._dynamo.reset()
    model, x = torch.nn.Sequential(batchnorm.BatchNorm2d(2)), images(6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(x)
    before = picture(model)
    with pytest.raises(torch._dynamo.exc.Unsupported), accumulate_statistics(model):
        compiled(x)
    assert picture(model) == before


def test_a_full_graph_with_hooks_added_later():
    """Compiled code did not call them, and the statistics moved with every micro-batch."""
    torch._dynamo.reset()
    model, x = torch.nn.Sequential(torch.nn.BatchNorm2d(2, momentum=1.0)), images(6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(x + 1)
    with accumulate_statistics(model):
        for part in x.split(3):
            compiled(part)
    np.testing.assert_allclose(model[0].running_var, expected([x])[1], rtol=1e-5)
    assert int(model[0].num_batches_tracked) == 2


def test_nothing_waits_for_the_device():
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default, "a value was asked for"
            return func(*args, **(kwargs or {}))

    norm, x = batchnorm.BatchNorm2d(2, momentum=None), images(6)
    mask = torch.rand(6, 7, 7) < 0.5
    with Watch(), accumulate_statistics(norm):
        norm(x)
        norm(x, mask=mask)
    assert int(norm.num_batches_tracked) == 1
