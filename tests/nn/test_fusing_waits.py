"""What can happen while the output of a ``FusingBatchNorm*`` waits: it is right all the same, or it raises."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.nn._norm_call import watch
from batchnorm.nn._pending import Pending
from nn.fusing_tools import agree, data, layers


def test_shape_and_dtype_are_known_before_it_is_computed():
    fusing, _ = layers()
    with watch() as seen:
        y = fusing(data())
        assert (y.shape, y.size(1), y.dim(), y.ndim, len(y), y.dtype, y.device) == (
            (3, 4, 5, 5),
            4,
            4,
            4,
            3,
            torch.float32,
            torch.device("cpu"),
        )
        assert isinstance(y, Tensor)
        assert seen == []
        assert y.requires_grad
        assert len(seen) == 1


def test_what_was_modified_in_place_is_not_computed_from():
    fusing, _ = layers()
    x, r = data(), data(2)
    y = fusing(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="the input of a FusingBatchNorm2d was modified in place"):
        torch.relu(y)
    y = fusing(data()) + r
    r.add_(1)
    with pytest.raises(RuntimeError, match="other side of the sum"):
        torch.relu(y)
    state = {name: getattr(fusing, name) for name in ("weight", "bias", "running_mean", "running_var")}
    names = ("the weight", "the bias", "the running mean", "the running variance")
    for name, (key, tensor) in zip(names, state.items(), strict=True):
        for training in (True, False):
            y = fusing.train(training)(data())
            with torch.no_grad():
                tensor.mul_(1.5)
            if training and "running" in key:
                torch.relu(y)  # what the batch is not normalised by may move
            else:
                with pytest.raises(RuntimeError, match=name):
                    torch.relu(y)


def test_what_was_modified_before_a_result_that_nobody_reads_is_told():
    fusing, _ = layers()
    x = data()
    y = fusing(x)
    x.zero_()
    with pytest.warns(UserWarning, match="the input of a FusingBatchNorm2d was modified .* have not moved"):
        del y
    assert int(fusing.num_batches_tracked) == 0


def test_what_the_layer_had_when_it_was_called_is_what_it_is_computed_from():
    fusing, plain = layers()
    other = {"weight": torch.full((4,), 3.0, requires_grad=True), "bias": torch.zeros(4)}
    for layer in (fusing, plain):
        torch.relu(torch.func.functional_call(layer, other, (data(),))).sum().backward()
    assert fusing.weight.grad is None
    ours, other["weight"].grad = other["weight"].grad, None
    torch.relu(torch.func.functional_call(plain, other, (data(),))).sum().backward()
    torch.testing.assert_close(ours, 2 * other["weight"].grad)


def test_a_sum_that_waits_is_of_what_the_output_was():
    def doubled(norm, x, r):
        y = norm(x)
        z = y + r
        y.mul_(2)
        return torch.relu(z) + y

    def set_to_zero(norm, x, r):
        y = norm(x)
        z = y + r
        y[0] = 0
        return torch.relu(z) + y

    for code in (doubled, set_to_zero):
        agree(code)


def test_copies_of_a_norms_output_are_no_views():
    def transposed(norm, x, r):
        y = norm(x)
        copy = y.transpose(1, 2).flatten(1)
        y += r
        return torch.relu(copy)

    def channels_last(norm, x, r):
        y = norm(x.contiguous(memory_format=torch.channels_last))
        copy = y.flatten(1)
        y.relu_()
        return copy * 2

    for code in (transposed, channels_last, lambda norm, x, r: norm(x).view(torch.int32).float() * x.sum()):
        agree(code)


def test_in_inference_mode_nothing_waits():
    fusing, plain = layers()
    for layer in (fusing, plain):
        layer.eval()
    with torch.inference_mode():
        found = []
        for layer in (fusing, plain):
            x, r = data() * 1, data(2) * 1
            y, z = layer(x), layer(r) + r
            x.add_(5), r.zero_()
            found.append((torch.relu(y), torch.relu(z)))
    torch.testing.assert_close(*found)


def test_the_gradient_of_an_output_that_was_computed_with_what_follows_is_refused():
    fusing, _ = layers()
    y = fusing(data())
    torch.relu(y)
    with pytest.raises(RuntimeError, match="it gets no gradient"):
        y.retain_grad()
    with pytest.raises(RuntimeError, match="it gets no gradient"):
        y.register_hook(print)
    y = fusing(data())
    y.retain_grad()
    torch.relu(y).sum().backward()
    assert y.grad is not None


def test_metadata_in_place():
    fusing, plain = layers()
    for layer in (fusing, plain):
        y = layer(data())
        y.unsqueeze_(0)
        assert (y.shape, torch.relu(y).shape) == ((1, 3, 4, 5, 5), (1, 3, 4, 5, 5))


def test_the_running_statistics_are_those_after_the_last_call():
    for look in (
        lambda layer: layer.running_mean.clone(),
        lambda layer: layer.state_dict()["running_var"].clone(),
        lambda layer: copy.deepcopy(layer).running_mean,
        lambda layer: layer.num_batches_tracked.clone(),
    ):
        found = []
        for layer in layers():
            y = layer(data())
            found.append(look(layer))
            torch.relu(y)
            found.append(layer.running_mean.clone())
        torch.testing.assert_close(found[0], found[2])
        torch.testing.assert_close(found[1], found[3])


def test_hooks_of_the_layer_get_what_they_would():
    fusing, _ = layers()
    seen = []
    fusing.register_forward_hook(lambda module, inputs, output: seen.append(type(output)))
    fusing.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape))
    torch.relu(fusing(data().requires_grad_())).sum().backward()
    assert seen == [Tensor, (3, 4, 5, 5)]


def test_torch_decides_what_an_activation_allows():
    agree(lambda norm, x, r: F.hardtanh(norm(x), 1.0, 1.0) + r)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm):
        return norm(x)

    @staticmethod
    def backward(ctx, g):
        return g, None


def test_an_autograd_function_cannot_lose_the_gradient_without_a_word():
    fusing, _ = layers()
    loss = Double.apply(fusing(data().requires_grad_())).sum()
    with pytest.raises(RuntimeError, match=r"autograd\.Function"):
        loss.backward()
    loss = Double.apply(fusing(data().requires_grad_()).clone()).sum()
    loss.backward()
    assert fusing.weight.grad is not None
    with pytest.raises(RuntimeError, match=r"autograd\.Function"):
        torch.relu(Through.apply(data().requires_grad_(), fusing.eval()))


def test_grad_mode_is_that_of_the_call():
    fusing, _ = layers()
    with torch.no_grad():
        y = fusing.eval()(data())
    assert not torch.relu(y).requires_grad
    y = fusing(data())
    with torch.no_grad():
        z = y * 2
    assert not z.requires_grad
    assert (y * 2).requires_grad


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_around_norm_and_activation(reentrant):
    found = []
    for layer in layers():
        x = data().requires_grad_()
        y = checkpoint(lambda x, layer=layer: torch.relu(layer(x * 1) + x), x, use_reentrant=reentrant)
        y.mul(data(3)).sum().backward()
        found.append([y.detach(), x.grad, layer.weight.grad, *layer.buffers()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
def test_compile_export_and_transforms_compute_at_once(training):
    fusing, plain = layers()
    for layer in (fusing, plain):
        layer.train(training)
    code = lambda layer, x: torch.relu(layer(x) + x)  # noqa: E731
    torch._dynamo.reset()
    compiled = torch.compile(code, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(fusing, data()), code(plain, data()))
    torch.testing.assert_close(fusing.running_mean, plain.running_mean)
    program = torch.export.export(fusing, (data(),))
    torch.testing.assert_close(program.module()(data()), plain(data()))
    fusing, plain = fusing.eval(), plain.eval()
    jvp = torch.func.jvp(lambda x: code(fusing, x), (data(),), (data(2),))
    torch.testing.assert_close(jvp, torch.func.jvp(lambda x: code(plain, x), (data(),), (data(2),)))
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(fusing, torch.nn.ReLU()))
    torch.testing.assert_close(traced(data()), torch.relu(plain(data())))


def test_copies_and_pickles_while_a_call_waits():
    fusing, plain = layers()
    waiting = fusing(data())
    for other in (copy.deepcopy(fusing), pickle.loads(pickle.dumps(fusing))):
        torch.testing.assert_close(torch.relu(other(data())), torch.relu(plain(data())))
        plain.reset_running_stats()
    assert isinstance(waiting, Pending)
    torch.testing.assert_close(copy.deepcopy(waiting.detach()), plain(data()))


def test_errors_are_raised_where_the_layer_is_called():
    fusing, _ = layers()
    with pytest.raises(batchnorm.errors.ShapeError, match=r"FusingBatchNorm2d: .* 5 channels"):
        fusing(torch.randn(3, 5, 2, 2))
    with pytest.raises(ValueError, match="expected 4D"):
        fusing(torch.randn(3, 4))
    with pytest.raises(batchnorm.errors.TooFewValuesError):
        fusing(torch.randn(1, 4, 1, 1))


def test_what_it_stood_for_is_freed():
    fusing, _ = layers()
    x = data()
    gone = weakref.ref(x)
    y = torch.relu(fusing(x)).detach()
    del x
    gc.collect()
    assert gone() is None
    assert y.shape == (3, 4, 5, 5)


def test_a_wait_costs_less_memory_than_it_saves():
    """The norm's output is not there beside the activation's."""
    fusing, plain = layers()
    from batchnorm.bench.kept import bytes_kept

    x = data().requires_grad_()
    kept = {layer: bytes_kept(lambda layer=layer: torch.relu(layer(x) + x)) for layer in (fusing, plain)}
    assert kept[fusing] < kept[plain]
