"""``convert``: what comes along, what is refused and why, and what torch's own conversion loses."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import batchnorm
from batchnorm.errors import ArgumentError, SurgeryError
from batchnorm.surgery import convert
from surgery.convert_tools import KINDS, assert_same, fill, images


class Own(nn.BatchNorm2d):
    """With a ``forward`` of its own, as timm's ``BatchNormAct2d``."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Plain(nn.BatchNorm2d):
    """Without one."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-3)
        self.source = "a paper"

    def helper(self) -> int:
        return self.num_features


class PlainGhost(batchnorm.GhostBatchNorm2d):
    """A subclass of one of ours."""


class Any2d(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


def refused(layer: nn.Module, to: str = "batch", **arguments: Any) -> str:
    """The reason, which the warning and the error both give."""
    model = nn.Sequential(nn.Identity(), layer)
    with pytest.warns(UserWarning, match=r"^1 of the norms cannot become .*: 1 \(") as caught:
        new = convert(model, to, **arguments)
    assert len(caught) == 1
    assert type(new[1]) is type(layer)
    with pytest.raises(SurgeryError, match="where=") as raised:
        convert(model, to, strict=True, **arguments)
    reason = str(caught[0].message).split("): ", 1)[1].split(". They stay")[0]
    assert reason in str(raised.value)
    return reason


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.new_group([0])
    dist.destroy_process_group()


# --- what comes along --------------------------------------------------------------------------------------------


def test_the_model_given_and_its_optimizer_go_on():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    new = convert(model, "ghost", ghost_size=2)
    new(images()).sum().backward()
    before = model[1].weight.clone()
    optimizer.step()
    assert not torch.equal(new[1].weight, before)
    assert int(model[1].num_batches_tracked) == 4  # parts of the ghost batch: the buffers are shared
    assert type(model[1]) is nn.BatchNorm2d


def test_a_subclass_without_a_forward_of_its_own_comes_back():
    model = nn.Sequential(fill(Plain(3)), fill(PlainGhost(3, ghost_size=2)))
    there = convert(model, "sync")
    assert [type(layer) for layer in there] == [batchnorm.SyncBatchNorm._plain] * 2
    assert there[0].source == "a paper"
    there = pickle.loads(pickle.dumps(there))
    back = convert(convert(there, "torch", where=lambda path, layer: path == "0"), "ghost", where=lambda p, _: p == "1")
    assert [type(layer) for layer in back] == [Plain, PlainGhost]
    assert back[0].helper() == 3
    assert back[1].ghost_size == 2


def test_the_model_may_be_a_norm_itself():
    assert_same(model := fill(nn.BatchNorm2d(3)), convert(convert(model, "domain"), "torch"))


def test_a_norm_at_two_places_is_converted_once_and_where_sees_its_first():
    norm, seen = nn.BatchNorm2d(3), []
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm)})
    new = convert(model, "batch", where=lambda path, layer: seen.append((path, layer)) or True)
    assert new["a"] is new["b"][0]
    assert seen == [("a", norm)]


def test_where_leaves_layers_out_without_a_word():
    model = nn.Sequential(Own(3), nn.BatchNorm2d(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = convert(model, "sync", where=lambda path, layer: type(layer) is nn.BatchNorm2d, strict=True)
    assert type(new[0]) is Own
    assert isinstance(new[1], batchnorm.SyncBatchNorm)


def test_arguments_of_the_kind_already_there_change_it():
    model = nn.Sequential(batchnorm.GhostBatchNorm2d(3, ghost_size=4), PlainGhost(3, ghost_size=8))
    new = convert(model, "ghost", ghost_size=2)
    assert [layer.ghost_size for layer in new] == [2, 2]
    assert [layer.ghost_size for layer in model] == [4, 8]
    assert type(new[1]) is PlainGhost
    renorm = batchnorm.BatchRenorm2d(3, r_max=2.0, d_max=1.0, warmup=7)
    back = convert(convert(renorm, "torch"), "renorm", r_max=1.5)
    assert (back.r_max, back.d_max, back.warmup) == (1.5, 1.0, (0, 7, 7))


def test_a_frozen_layer_follows_the_model():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval())
    there = convert(model, "frozen")
    assert [layer.training for layer in there] == [False, False]
    assert [layer.training for layer in convert(there, "torch")] == [True, False]
    assert [layer.training for layer in convert(there.train(), "torch")] == [True, True]
    assert [layer.training for layer in convert(batchnorm.FrozenBatchNorm2d(3), "batch").modules()] == [True]


def test_a_waiting_norm_is_computed_before():
    model = nn.Sequential(batchnorm.FusingBatchNorm2d(3))
    waiting = model(images())
    new = convert(model, "torch")
    assert int(new[0].num_batches_tracked) == 1
    torch.relu(waiting)
    assert int(new[0].num_batches_tracked) == 1


# --- domains ------------------------------------------------------------------------------------------------------


def test_the_first_domain_takes_the_buffers_and_the_others_copy_them():
    model = fill(nn.BatchNorm2d(3))
    new = convert(model, "domain", domains=iter(["day", "night"]))
    assert new.domains == ("day", "night")
    assert new.running_mean is model.running_mean
    night = new.statistics["night"].running_mean
    assert night is not model.running_mean
    assert torch.equal(night, model.running_mean)
    assert not [key for key in convert(new, "torch").state_dict() if "night" in key]


def test_the_current_domain_is_the_layers_and_the_others_wait():
    model = fill(batchnorm.DomainBatchNorm2d(3, domains=("a", "b", "c")))
    model.domain = "b"
    there = convert(model, "torch")
    assert there.running_mean is model.running_mean
    there(images())
    back = convert(there, "domain")
    assert (back.domain, back.domains) == ("b", ("a", "b", "c"))
    assert torch.equal(back.statistics["b"].running_mean, there.running_mean)
    assert back.statistics["c"].running_mean is model.statistics["c"].running_mean
    moved = convert(copy.deepcopy(there).double(), "domain")
    assert moved.statistics["c"].running_mean.dtype == torch.float64
    assert convert(there, "domain", domains=("b", "d")).domains == ("b", "d")


def test_a_layer_has_its_domains_already():
    assert "it has the domains source, target" in refused(batchnorm.DomainBatchNorm2d(3), "domain", domains=("a", "b"))
    layer = batchnorm.DomainBatchNorm2d(3)
    assert convert(layer, "domain", domains=("source", "target"), strict=True).domains == layer.domains


def test_buffers_of_ones_own_and_hidden_ones_come_along():
    layer = nn.BatchNorm2d(3)
    layer.register_buffer("extra", torch.ones(2))
    layer.register_buffer("running_mean", torch.ones(3), persistent=False)
    there = convert(layer, "domain")
    assert there.extra is layer.extra
    assert not [key for key in there.state_dict() if "mean" in key]
    assert_same(layer, convert(there, "torch"))


# --- process groups -----------------------------------------------------------------------------------------------


def test_process_groups_come_along(group):
    model = nn.SyncBatchNorm(3, process_group=group)
    ours = convert(model, "sync")
    assert ours.process_group is group
    assert_same(model, convert(ours, "torch-sync"))
    plain = convert(model, "torch", dimensions=2)
    assert convert(pickle.loads(pickle.dumps(plain)), "batch", strict=True).num_features == 3
    assert_same(model, convert(plain, "torch-sync"))
    assert convert(nn.BatchNorm2d(3), "sync", process_group=group).process_group is group
    assert_same(ours, convert(convert(ours, "torch", dimensions=2), "sync"))


def test_a_ddp_model_is_refused(group):
    with pytest.raises(SurgeryError, match="convert the model inside"):
        convert(nn.parallel.DistributedDataParallel(nn.Sequential(nn.BatchNorm2d(3)), process_group=group), "sync")


# --- what is refused ----------------------------------------------------------------------------------------------


def test_what_computes_something_else_is_refused():
    assert refused(Own(3)) == "Own has its own forward"
    patched = nn.BatchNorm2d(3)
    patched.forward = lambda x: x  # type: ignore[method-assign,assignment]
    assert refused(patched) == "BatchNorm2d has its own forward"
    assert refused(type("T", (nn.BatchNorm2d,), {"train": lambda self, mode=True: self})(3)) == "T has its own train"
    assert refused(type("C", (nn.BatchNorm2d,), {"__call__": lambda self, x: x})(3)) == "C has its own __call__"
    assert refused(type("S", (nn.BatchNorm2d,), {"__slots__": ("a",)})(3)) == "S has its own __slots__"
    assert "may compute something else" in refused(Any2d(3))


def test_layers_that_have_no_parameters_of_their_own_are_refused():
    assert "lazy" in refused(nn.LazyBatchNorm2d())
    weighted = nn.BatchNorm2d(3)
    parametrize.register_parametrization(weighted, "weight", nn.Softplus())
    assert "parametrized" in refused(weighted)


def test_a_lazy_layer_converts_once_it_has_seen_a_batch():
    layer = nn.LazyBatchNorm2d()
    layer(images())
    assert type(convert(layer, "batch", strict=True)) is batchnorm.BatchNorm2d


def test_a_pruned_layer_is_pruned_still():
    layer = fill(nn.BatchNorm2d(3))
    prune.l1_unstructured(layer, "weight", amount=1)
    layer(images())
    with pytest.raises(SurgeryError, match="remove functions"):
        convert(layer, "batch")


@pytest.mark.parametrize("to", ["torch", "torch-sync", "batch"])
def test_an_activation_is_not_dropped(to):
    assert "has no activation, and this layer has Activation('relu')" in refused(batchnorm.BatchNormAct2d(3), to)
    assert convert(batchnorm.BatchNormAct2d(3, activation=None), to, strict=True)(images()).shape == (7, 3, 2, 2)


@pytest.mark.parametrize("source", [nn.SyncBatchNorm, batchnorm.SyncBatchNorm])
def test_dimensions_that_nobody_knows(source):
    assert "dimensions=1, 2 or 3" in refused(source(3), "torch")
    assert type(convert(source(3), "torch", dimensions=3)) is nn.BatchNorm3d
    assert type(convert(source(3), "ghost", dimensions=1)) is batchnorm.GhostBatchNorm1d._plain
    # A layer that has been converted remembers its own.
    assert type(convert(convert(nn.BatchNorm2d(3), "sync"), "torch", dimensions=1)) is nn.BatchNorm2d


@pytest.mark.parametrize("to", ["renorm", "frozen", "domain"])
def test_layers_without_statistics(to):
    assert "no running statistics" in refused(nn.BatchNorm2d(3, track_running_stats=False), to)


def test_frozen_by_freeze():
    model = nn.Sequential(nn.BatchNorm2d(3))
    batchnorm.freeze(model)
    assert "unfreeze" in refused(model[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not convert(model, "frozen")[0].training


def test_while_statistics_are_accumulated():
    layer = batchnorm.BatchNorm2d(3)
    with batchnorm.accumulate_statistics(layer):
        assert "being accumulated" in refused(layer, "torch")


def test_attributes_that_would_mean_something_else():
    layer = nn.BatchNorm2d(3)
    layer.activation = "relu"  # type: ignore[assignment]
    assert "'activation'" in refused(layer, "ghost")
    assert convert(layer, "batch", strict=True).activation == "relu"
    sized = nn.BatchNorm2d(3)
    sized.ghost_size = 5  # type: ignore[assignment]
    assert "'ghost_size'" in refused(sized, "ghost")


def test_one_warning_names_all():
    with pytest.warns(
        UserWarning, match=r"^2 of the norms .* 0 \(Own\): .*; 2 \(Any2d\): .* stay as they are"
    ) as caught:
        convert(nn.Sequential(Own(3), nn.BatchNorm2d(3), Any2d(3)), "batch")
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_arguments_are_checked_whatever_the_layers():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match=r"'gost'.*'ghost'"):
        convert(model, "gost")
    with pytest.raises(ArgumentError, match=r"'torch' does not take ghost_size.*no arguments"):
        convert(model, "torch", ghost_size=3)
    with pytest.raises(ArgumentError, match=r"momentum.*it takes r_max, d_max, warmup"):
        convert(model, "renorm", momentum=0.5)
    with pytest.raises(ArgumentError, match="ghost_size"):
        convert(model, "ghost", ghost_size=0)
    with pytest.raises(ArgumentError, match="dimensions"):
        convert(model, "torch", dimensions=4)


def test_compiled_and_scripted_models_raise():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(SurgeryError, match=r"compiled.*then compile"):
        convert(torch.compile(model, backend="eager"), "batch")
    with pytest.raises(SurgeryError, match=r"scripted.*then script"):
        convert(nn.Sequential(torch.jit.script(model)), "batch")
    model.compile(backend="eager")
    with pytest.raises(SurgeryError, match="compiled"):
        convert(model, "batch")


def test_a_module_that_copies_itself_wrongly_is_named():
    class Copies(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> nn.Sequential:
            return nn.Sequential(nn.BatchNorm2d(3))

    with pytest.raises(SurgeryError, match="0 is not in both"):
        convert(nn.Sequential(Copies(nn.BatchNorm2d(3))), "batch")


# --- what torch's conversion loses (BN006) ------------------------------------------------------------------------


def test_a_subclass_forward_is_not_dropped():
    lost = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(Own(3)))
    assert (lost.eval()(images()) < 0).any()  # torch: the activation is gone
    with pytest.warns(UserWarning, match="its own forward"):
        kept = convert(nn.Sequential(Own(3)), "sync")
    assert (kept.eval()(images()) >= 0).all()


def marked(module: nn.Module, *_: Any) -> None:
    module.called = True


@pytest.mark.parametrize("to", KINDS)
def test_flags_hooks_and_attributes_are_not_dropped(to):
    model = nn.Sequential(nn.BatchNorm2d(3, bias=False, dtype=torch.float64).eval())
    model[0].weight.requires_grad_(False)
    model[0].note = "kept"
    model[0].register_forward_pre_hook(marked)
    lost = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))[0]
    assert not hasattr(lost, "note")
    assert not lost._forward_pre_hooks
    new = convert(model, to)[0]
    assert (new.training, new.weight.requires_grad, new.note, new.bias) == (False, False, "kept", None)
    new(images(dtype=torch.float64))
    assert new.called
    assert not hasattr(model[0], "called")


def test_both_ways_through_torchs_own_class():
    model = nn.Sequential(fill(nn.BatchNorm2d(3)), nn.ReLU())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ours = convert(synced, "sync")
    assert torch.allclose(synced.eval()(images()), ours.eval()(images()), atol=1e-6)
    assert_same(synced.eval(), convert(ours, "torch-sync"))


def test_a_module_that_is_its_own_copy_is_named_and_left():
    """It would have been changed in the model given."""

    class Keeps(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> nn.Sequential:
            return self

    model = nn.Sequential(nn.ReLU(), Keeps(nn.BatchNorm2d(3)))
    with pytest.raises(SurgeryError, match="1 is the same module in both"):
        convert(model, "ghost")
    assert type(model[1][0]) is nn.BatchNorm2d


def test_a_mixin_behind_the_base_is_the_class_s_own():
    class Evaluates(nn.Module):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(False)

    class Norm(nn.BatchNorm2d, Evaluates):
        pass

    with pytest.raises(SurgeryError, match="Norm has its own train"):
        convert(nn.Sequential(Norm(3)), "ghost", strict=True)
