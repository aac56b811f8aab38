"""What single layers do beyond the contract that all keep: their place in torch's ecosystem."""

import copy
import functools
import warnings

import pytest
import torch
import torch.nn.utils.parametrize
import torch.nn.utils.prune
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, BatchNormAct1d, BatchNormAct2d, BatchNormAct3d


def test_the_unfused_layers_are_torchs() -> None:
    for ours, theirs in (
        (BatchNorm1d, torch.nn.BatchNorm1d),
        (BatchNorm2d, torch.nn.BatchNorm2d),
        (BatchNorm3d, torch.nn.BatchNorm3d),
    ):
        assert issubclass(ours, theirs)
        assert repr(ours(4)) == (
            f"{theirs.__name__}(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)"
        )


def test_a_layer_with_an_activation_is_not_torchs() -> None:
    """convert_sync_batchnorm and fuse_conv_bn_eval would drop the activation without a word."""
    for layer in (BatchNormAct1d, BatchNormAct2d, BatchNormAct3d):
        assert not issubclass(layer, _BatchNorm)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), BatchNormAct2d(4))
    assert type(torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)[1]) is BatchNormAct2d


def test_torchs_tools_take_the_unfused_layer() -> None:
    conv, norm = torch.nn.Conv2d(3, 4, 3), BatchNorm2d(4)
    for _ in range(3):
        norm(conv(torch.randn(8, 3, 6, 6)) * 2 + 1)
    model = torch.nn.Sequential(conv, norm).eval()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(fuse_conv_bn_eval(conv, norm)(x), model(x), rtol=1e-4, atol=1e-5)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert torch.equal(converted[1].running_var, norm.running_var)
    torch.optim.swa_utils.update_bn([torch.randn(8, 3, 6, 6)], model)


def test_accepted_as_norm_layer() -> None:
    """timm and torchvision call ``norm_layer(channels)``, often through functools.partial with eps and momentum."""
    norm_layer = functools.partial(BatchNorm2d, eps=1e-3, momentum=0.01)
    assert norm_layer(8).eps == 1e-3
    # torchvision's ResNet zeroes the last gamma of a block where the layer is a torch BatchNorm2d.
    assert isinstance(norm_layer(8), torch.nn.BatchNorm2d)


def test_channels_without_samples_or_features() -> None:
    assert BatchNorm1d(0)(torch.randn(4, 0)).shape == (4, 0)
    with pytest.raises(batchnorm.errors.ArgumentError):
        BatchNorm1d(-1)


class _Doubled(torch.nn.Module):
    def forward(self, parameter: torch.Tensor) -> torch.Tensor:
        return 2 * parameter


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [BatchNorm1d, BatchNormAct1d], ids=lambda c: c.__name__)
def test_parameters_and_buffers_wherever_torch_keeps_them(layer: type[torch.nn.Module], training: bool) -> None:
    """Parametrized, pruned and replicated layers have them outside of the module's dictionaries."""
    x = torch.randn(6, 4)
    plain = layer(4).train(training)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([2.0, 4.0, 0.0, 6.0]))
        plain.bias.copy_(torch.tensor([1.0, 0.0, 1.0, -1.0]))
        plain.running_mean.fill_(0.5)

    parametrized = copy.deepcopy(plain)
    with torch.no_grad():
        parametrized.weight /= 2
    torch.nn.utils.parametrize.register_parametrization(parametrized, "weight", _Doubled())
    pruned = copy.deepcopy(plain)
    torch.nn.utils.prune.custom_from_mask(pruned, "weight", torch.tensor([1, 1, 0, 1]))
    with torch.no_grad():
        pruned.weight_orig[2] = 5.0
    replica = copy.deepcopy(plain)._replicate_for_data_parallel()
    for name, parameter in plain.named_parameters():
        setattr(replica, name, parameter.detach() + 0)
    bare = copy.deepcopy(plain)
    del bare._buffers["running_mean"]
    bare.running_mean = plain.running_mean + 0

    wanted = copy.deepcopy(plain)(x)
    for changed in (parametrized, pruned, replica, bare):
        torch.testing.assert_close(changed(x), wanted)
        torch.testing.assert_close(changed.running_mean, (0.45 + 0.1 * x.mean(0)) if training else plain.running_mean)
    zero = {name: torch.zeros_like(parameter) for name, parameter in plain.named_parameters()}
    assert (torch.func.functional_call(plain, zero, (x,)) == 0).all()
    statistics = {"running_mean": torch.ones(4), "running_var": torch.full((4,), 4.0)}
    found = torch.func.functional_call(plain, (zero | {"weight": torch.ones(4)}, statistics), (x,))
    if training:
        torch.testing.assert_close(statistics["running_mean"], 0.9 + 0.1 * x.mean(0))
        assert int(plain.num_batches_tracked) == 2  # what is not handed in is the layer's own
    else:
        z = (x - 1) / 2
        torch.testing.assert_close(found, z if layer is BatchNorm1d else z.relu(), rtol=1e-4, atol=1e-5)


def test_parameters_in_half_precision_as_model_half_makes_them() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        layer, twin = BatchNorm2d(3).to(dtype), torch.nn.BatchNorm2d(3).to(dtype)
        x = torch.randn(4, 3, 5, 5).to(dtype)
        for training in (True, False):
            layer.train(training)
            twin.train(training)
            torch.testing.assert_close(layer(x), twin(x), rtol=1e-2, atol=1e-2)
        assert layer.running_mean.dtype == dtype


def test_symbolic_tracing_sees_one_node() -> None:
    """As with torch's layer: feature extractors and graph-mode tools are built on it."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
            self.plain = BatchNorm2d(3)
            self.fused = BatchNormAct2d(3, momentum=None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fused(self.plain(self.conv(x)), residual=x)

    net = Net()
    traced = torch.fx.symbolic_trace(net)
    nodes = [(node.op, node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert nodes == [("call_module", name) for name in ("conv", "plain", "fused")]
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(traced(x), net(x))


def test_meta_tensors_have_shapes() -> None:
    for layer in (BatchNorm2d(3, device="meta"), BatchNormAct2d(3, device="meta")):
        for training in (True, False):
            x = torch.empty(2, 3, 5, 5, device="meta", requires_grad=True)
            output = layer.train(training)(x)
            assert (output.shape, output.device.type) == (x.shape, "meta")
            output.sum().backward()
            assert x.grad.shape == x.shape


@pytest.mark.parametrize("training", [True, False])
def test_torchscript_tracing(training: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), BatchNormAct2d(4)).train(training)
    x = torch.randn(2, 3, 5, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and warns that shapes were checked
        traced = torch.jit.trace(model, x, check_trace=False)
    assert "^" not in str(traced.inlined_graph)  # a Python function in the graph could not be saved
    y = x.repeat(3, 1, 1, 1)
    torch.testing.assert_close(traced(y), model(y))
