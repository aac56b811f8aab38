"""``freeze`` and ``unfreeze``: what a training loop cannot undo, and ``unfreeze`` undoes to the last attribute."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.errors import ArgumentError
from batchnorm.population import freeze, layers, unfreeze
from interrupts import interrupted_at

SOURCE = sys.modules["batchnorm.population.freeze"].__file__


class Timm(nn.BatchNorm2d):
    """A norm with a forward of its own, as timm's ``BatchNormAct2d`` has one."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(y)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "torch": lambda: nn.BatchNorm2d(3),
    "torch-sync": lambda: nn.SyncBatchNorm(3),
    "own forward": lambda: Timm(3),
    "batch": lambda: batchnorm.BatchNorm2d(3, momentum=None),
    "fusing": lambda: batchnorm.FusingBatchNorm2d(3),
    "act": lambda: batchnorm.BatchNormAct2d(3, activation="silu"),
}
for _name in ("GhostBatchNorm2d", "BatchRenorm2d", "DomainBatchNorm2d", "SyncBatchNorm"):
    _cls = getattr(batchnorm, _name)
    LAYERS[_name] = lambda cls=_cls: cls(3)
    LAYERS[f"{_name} with relu"] = lambda cls=_cls: cls(3, activation="relu")


def filled(layer: nn.Module) -> nn.Module:
    """Parameters and statistics at which a mistake shows."""
    with torch.no_grad():
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + ("var" in name))
    return layer


def state(model: nn.Module) -> list[Any]:
    """Everything about a model: classes, attributes, tensors by identity, flags."""
    return [
        (
            type(m),
            {k: v for k, v in vars(m).items() if not k.startswith("_")},
            vars(m).keys(),
            [(k, id(t), t.requires_grad) for k, t in m.named_parameters()],
            [(k, id(t)) for k, t in m.named_buffers()],
        )
        for m in model.modules()
    ]


def x() -> Tensor:
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 + 1


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> nn.Module:
    return filled(LAYERS[request.param]())


def test_a_frozen_layer_trains_as_one_in_evaluation_and_its_statistics_stay(layer):
    expected_input, input = x().requires_grad_(), x().requires_grad_()
    expected_layer = copy.deepcopy(layer).eval()
    expected = expected_layer(expected_input)
    expected.sin().sum().backward()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    model = nn.Sequential(layer)
    assert freeze(model) == ["0"]
    y = model.train()(input)
    y.sin().sum().backward()
    assert model.training
    assert torch.equal(y, expected)
    assert torch.equal(input.grad, expected_input.grad)
    for mine, theirs in zip(layer.parameters(), expected_layer.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_unfreeze_is_the_exact_inverse(layer):
    model = nn.Sequential(layer, nn.Sequential(filled(nn.BatchNorm2d(3)).eval()))
    model[1][0].weight.requires_grad_(False)
    before = state(model)
    for affine in (False, True):
        assert freeze(model, affine=affine) == ["0", "1.0"]
        assert unfreeze(model) == ["0", "1.0"]
        assert state(model) == before
        assert unfreeze(model) == []


def test_a_frozen_layer_stays_what_it_was_to_isinstance_copy_pickle_and_save(layer):
    cls = type(layer)
    model = nn.Sequential(layer)
    freeze(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert isinstance(other[0], cls)
        assert type(other[0]) is type(layer)
        assert "frozen" in repr(other)
        assert torch.equal(other.train()(x()), model(x()))
        unfreeze(other)
        assert type(other[0]) is cls
        assert other[0].training


@pytest.mark.parametrize("meanwhile", ["train", "eval", None])
@pytest.mark.parametrize("before", [True, False])
def test_unfreeze_follows_the_model(before, meanwhile):
    model = nn.Sequential(nn.BatchNorm2d(3)).train(before)
    freeze(model)
    assert not model[0].training
    if meanwhile is not None:
        getattr(model, meanwhile)()
    unfreeze(model)
    assert model[0].training == {"train": True, "eval": False, None: before}[meanwhile]


def test_freezing_twice_is_thawed_by_one_unfreeze():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval())
    before = state(model)
    assert freeze(model, where=lambda path, layer: path == "1") == ["1"]
    assert freeze(model) == ["0"]
    assert freeze(model, affine=True) == ["0", "1"]
    assert freeze(model, affine=True) == []
    assert unfreeze(model, where=lambda path, layer: path == "0") == ["0"]
    assert unfreeze(model) == ["1"]
    assert state(model) == before


def test_affine_fixes_gamma_and_beta_also_where_two_layers_share_them():
    a, b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    b.weight = a.weight
    a.bias.requires_grad_(False)
    model = nn.Sequential(a, b)
    freeze(model)
    assert a.weight.requires_grad
    freeze(model, affine=True)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    unfreeze(model)
    assert [parameter.requires_grad for parameter in (a.weight, a.bias, b.bias)] == [True, False, True]


def test_layers_that_are_built_frozen_stay_frozen():
    model = nn.Sequential(batchnorm.FrozenBatchNorm2d(3))
    before = state(model)
    assert freeze(model) == []
    assert freeze(model, affine=True) == ["0"]
    assert not model[0].weight.requires_grad
    assert unfreeze(model) == ["0"]
    assert state(model) == before


def test_layers_without_statistics_are_named_and_nothing_changes():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3))
    before = state(model)
    with pytest.raises(ArgumentError, match=r"1 \(BatchNorm2d\).*where"):
        freeze(model)
    assert state(model) == before
    assert freeze(model, where=lambda path, layer: layer.track_running_stats) == ["0"]


def test_a_batch_that_waits_is_counted_before():
    norm = batchnorm.FusingBatchNorm2d(3)
    waiting = norm(x())
    freeze(norm)
    assert int(norm.num_batches_tracked) == 1
    mean = norm.running_mean.clone()
    torch.relu(waiting)
    assert torch.equal(norm.running_mean, mean)
    unfreeze(norm)
    assert type(norm) is batchnorm.FusingBatchNorm2d


def test_scripted_layers_raise():
    with pytest.raises(ArgumentError, match=r"before torch\.jit\.script"):
        freeze(torch.jit.script(nn.Sequential(nn.BatchNorm2d(3))))


def test_a_compiled_model_is_frozen_too():
    torch._dynamo.reset()
    compiled = torch.compile(nn.Sequential(nn.BatchNorm2d(3)), backend="eager")
    norm = compiled._orig_mod[0]
    compiled(x())
    freeze(compiled)
    compiled.train()
    compiled(x())
    assert int(norm.num_batches_tracked) == 1
    unfreeze(compiled)
    compiled(x())
    assert int(norm.num_batches_tracked) == 2


def test_a_registry_of_subclasses_does_not_hear_of_frozen_ones():
    heard: list[str] = []

    class Registered(nn.BatchNorm2d):
        def __init_subclass__(cls, *, must: int) -> None:
            heard.append(cls.__name__)

    norm = Registered(3)
    freeze(norm)
    assert isinstance(norm, Registered)
    assert heard == []


@pytest.mark.parametrize("what", ["freeze", "unfreeze"])
def test_an_interrupt_at_any_line_changes_nothing(what):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval())
    model[0].bias.requires_grad_(False)
    if what == "unfreeze":
        freeze(model, affine=True)
    before = state(model)
    for line in range(1000):
        with suppress(KeyboardInterrupt):
            with interrupted_at(line, {SOURCE}, but=("restore", "__init__")):
                freeze(model, affine=True) if what == "freeze" else unfreeze(model)
            break
        assert state(model) == before, line
    assert line > 20
    assert state(model) != before


def test_what_frozen_means_to_the_other_tools():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    freeze(model, where=lambda path, layer: path == "1")
    assert [path for path, _ in layers.tracked_norms(model)] == ["0"]


class Modes:
    """Keeps the modes of a model and puts them back, as Lightning does around validation."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = {module: module.training for module in model.modules()}

    def put_back(self) -> None:
        for module, mode in self.modes.items():
            module.training = mode


def test_modes_that_are_kept_and_put_back_neither_thaw_nor_follow_into_unfreeze(layer):
    model = nn.Sequential(layer).train()
    freeze(model)
    modes = Modes(model)
    model.eval()
    modes.put_back()
    assert not layer.training
    unfreeze(model)
    assert model.training
    assert layer.training
    assert "_mode_written" not in vars(layer)


def test_freezing_between_keeping_modes_and_putting_them_back_holds(layer):
    model = nn.Sequential(layer).train()
    modes = Modes(model)
    model.eval()
    freeze(model)
    modes.put_back()
    before = [buffer.clone() for buffer in layer.buffers()]
    model(x())
    assert all(torch.equal(*each) for each in zip(layer.buffers(), before, strict=True))
    unfreeze(model)
    assert layer.training


def test_a_lazy_layer_is_refused():
    """Its first input would give it another class, and thaw it."""
    model = nn.Sequential(nn.LazyBatchNorm2d())
    with pytest.raises(ArgumentError, match=r"0 \(LazyBatchNorm2d\)"):
        freeze(model)
    model(x())
    assert freeze(model) == ["0"]


@pytest.mark.parametrize("first", [0, 1])
def test_who_shares_gamma_with_a_frozen_layer_gets_its_flag_back_with_the_last(first):
    models = [nn.Sequential(nn.BatchNorm2d(3))]
    models.append(batchnorm.convert(models[0], "ghost"))
    for model in models:
        freeze(model, affine=True)
    unfreeze(models[first])
    assert not models[0][0].weight.requires_grad
    unfreeze(models[1 - first])
    assert models[0][0].weight.requires_grad
    assert models[0][0].bias.requires_grad


def test_a_layer_whose_class_was_changed_while_it_was_frozen_is_named():
    model = nn.Sequential(nn.BatchNorm2d(3))
    freeze(model)
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
    with pytest.raises(ArgumentError, match="another class was put before the layer's own"):
        unfreeze(model)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert unfreeze(model) == ["0"]
    assert type(model[0]) is nn.BatchNorm2d


def test_the_statistics_of_domains_follow_the_layer():
    model = nn.Sequential(batchnorm.DomainBatchNorm2d(3)).eval()
    freeze(model)
    model.train()
    unfreeze(model)
    assert all(module.training for module in model.modules())


def test_a_layer_of_a_frozen_one_s_class_is_frozen_too():
    model = nn.Sequential(nn.BatchNorm2d(3))
    freeze(model)
    twin = type(model[0])(3)
    twin(x())
    assert int(twin.num_batches_tracked) == 0
    assert unfreeze(twin) == [""]
    assert twin.training


def test_update_bn_leaves_what_is_frozen():
    """It reset the statistics first, and then could not take others."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    filled(model)
    before = [buffer.clone() for buffer in model[0].buffers()]
    freeze(model[0])
    torch.optim.swa_utils.update_bn([x()], model)
    assert all(torch.equal(*each) for each in zip(model[0].buffers(), before, strict=True))
    assert int(model[1].num_batches_tracked) == 1
