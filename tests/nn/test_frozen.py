"""What only frozen layers do."""

import pytest
import torch

import batchnorm
from batchnorm.nn.frozen import Frozen


def trained() -> torch.nn.BatchNorm2d:
    layer = torch.nn.BatchNorm2d(3)
    for _ in range(3):
        layer(2 * torch.randn(4, 3, 5, 5) + 1)
    return layer


@pytest.mark.parametrize("activation", [None, "relu"])
def test_train_of_the_model_does_not_thaw(activation: str | None) -> None:
    layer = batchnorm.FrozenBatchNorm2d(3, activation=activation)
    assert not layer.training  # from the beginning
    assert layer.asked_mode
    model = torch.nn.Sequential(torch.nn.Dropout(), layer)
    for mode in (True, False, True):
        model.train(mode)
        assert (model[0].training, layer.training, layer.asked_mode) == (mode, False, mode)
    model.eval()
    assert not layer.asked_mode
    with pytest.raises(ValueError, match="boolean"):
        layer.train("yes")
    assert not layer.asked_mode


def test_one_image_with_one_pixel_is_no_matter() -> None:
    layer = batchnorm.FrozenBatchNorm2d(3).train()
    layer.load_state_dict(trained().state_dict())
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(1, 3, 1, 1)
    wanted = (x[0, :, 0, 0] - layer.running_mean) / (layer.running_var + layer.eps).sqrt()
    torch.testing.assert_close(layer(x)[0, :, 0, 0], wanted)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_gamma_and_beta_learn_unless_they_are_told_not_to() -> None:
    layer = batchnorm.FrozenBatchNorm2d(3)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    layer(torch.randn(2, 3, 4, 4)).sum().backward()
    assert layer.bias.grad is not None
    assert not layer.requires_grad_(False)(torch.randn(2, 3, 4, 4)).requires_grad


@pytest.mark.parametrize("version", [None, 1, 2, 3])
def test_frozen_checkpoints_without_a_count_load(version: int | None) -> None:
    """torchvision's frozen layers have no num_batches_tracked, nor have detectron2's, whose version is 3."""
    state = trained().state_dict()
    del state["num_batches_tracked"]
    if version is None:
        state = dict(state)
    else:
        state._metadata[""]["version"] = version
    model = torch.nn.Sequential(batchnorm.FrozenBatchNorm2d(3))
    given = type(state)((f"0.{name}", value) for name, value in state.items())
    if version is not None:
        given._metadata = {"": {"version": 1}, "0": {"version": version}}
    model.load_state_dict(given)
    assert "0.num_batches_tracked" not in given  # the caller's stays as it is
    assert torch.equal(model[0].running_mean, state["running_mean"])
    with pytest.raises(RuntimeError, match="running_var"):
        model.load_state_dict({name: value for name, value in given.items() if "running_var" not in name})


def test_the_mixin_freezes_any_norm_by_its_class() -> None:
    for layer in (trained(), batchnorm.BatchNorm2d(3), batchnorm.BatchNormAct2d(3), batchnorm.BatchRenorm2d(3)):
        kind = type(layer)
        layer.__class__ = type(f"Frozen{kind.__name__}", (Frozen, kind), {})
        before = layer.running_mean.clone()
        layer.train()
        layer(torch.randn(4, 3, 5, 5))
        assert torch.equal(layer.running_mean, before)
        assert layer.asked_mode
        layer.__class__ = kind
        layer.train()
        layer(torch.randn(4, 3, 5, 5))
        assert not torch.equal(layer.running_mean, before)


def test_without_statistics_there_is_nothing_to_freeze_to() -> None:
    with pytest.raises(batchnorm.errors.ArgumentError, match="track_running_stats"):
        batchnorm.FrozenBatchNorm2d(3, track_running_stats=False)


def test_whoever_sets_training_does_not_thaw_it():
    layer = batchnorm.FrozenBatchNorm2d(3)
    layer.training = True
    assert not layer.training
    layer(torch.randn(2, 3, 4, 4))
    assert int(layer.num_batches_tracked) == 0


def test_tools_that_look_for_a_batch_norm_of_torch_do_not_find_it():
    """One thawed it, the other set its statistics to those of no batches."""
    model = torch.nn.Sequential(batchnorm.FrozenBatchNorm2d(3))
    model[0].running_mean.fill_(2)
    assert torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)[0] is model[0]
    torch.optim.swa_utils.update_bn([torch.randn(2, 3, 4, 4)], model)
    assert torch.equal(model[0].running_mean, torch.full((3,), 2.0))
