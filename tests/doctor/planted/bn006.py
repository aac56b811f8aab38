"""Conversions that lost something."""

import copy

import torch
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted


class NormAct(nn.BatchNorm2d):
    """As in timm: a batch norm with an activation as a module inside."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.drop = nn.Identity()
        self.act = nn.ReLU()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


class Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 2, 1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(input)))


def batches() -> list[torch.Tensor]:
    return [torch.randn(4, 3, 8, 8) for _ in range(2)]


def trained(norm: nn.Module) -> Net:
    model = Net(norm)
    for batch in batches():
        model(2 * batch + 1)
    return model


def by_torch(model: nn.Module) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))


@planted("BN006", "norm")
def the_activation_is_gone() -> Case:
    original = trained(NormAct(4))
    return Case(by_torch(original), batches(), options={"before": original})


@planted("BN006", "norm")
def what_is_left_of_the_activation() -> Case:
    return Case(by_torch(trained(NormAct(4))))


@planted("BN006", "norm")
def converted_back_by_hand() -> Case:
    model = by_torch(trained(NormAct(4)))
    norm = nn.BatchNorm2d(4)
    norm.load_state_dict(model.norm.state_dict())
    norm.drop, norm.act = model.norm.drop, model.norm.act
    model.norm = norm
    return Case(model, batches())


@planted("BN006", "norm")
def a_ghost_norm() -> Case:
    original = trained(batchnorm.GhostBatchNorm2d(4, ghost_size=2))
    return Case(by_torch(original), options={"before": original})


@planted("BN006", "norm")
def a_frozen_one() -> Case:
    original = trained(nn.BatchNorm2d(4))
    batchnorm.freeze(original)
    return Case(by_torch(original), options={"before": original})


@planted("BN006", "norm")
def a_hook() -> Case:
    original = trained(nn.BatchNorm2d(4))
    original.norm.register_forward_hook(lambda *_: None)
    return Case(by_torch(original), options={"before": original})


@planted("BN006", "norm")
def all_by_hand() -> Case:
    original = trained(nn.BatchNorm2d(4, eps=1e-3, momentum=0.03))
    original.norm.weight.requires_grad_(False).fill_(0.5)
    original.eval()
    model = copy.deepcopy(original)
    model.norm = nn.SyncBatchNorm(4)
    return Case(model, options={"before": original})


@planted("BN006", "norm")
def it_trains_on_in_evaluation_mode() -> Case:
    model = trained(nn.BatchNorm2d(4)).eval()
    model.norm = nn.SyncBatchNorm(4)
    return Case(model)


@healthy("BN006")
def by_torch_without_loss() -> Case:
    original = trained(nn.BatchNorm2d(4, eps=1e-3, momentum=0.03)).eval()
    original.norm.weight.requires_grad_(False)
    return Case(by_torch(original), options={"before": original})


def _kinds() -> None:
    for kind in ("torch-sync", "sync", "ghost", "renorm", "frozen", "domain", "batch", "torch", "fused"):

        def converted(kind: str = kind) -> Case:
            original = trained(batchnorm.GhostBatchNorm2d(4, momentum=None, ghost_size=2))
            original.norm.register_forward_hook(lambda *_: None)
            return Case(batchnorm.convert(original, kind), options={"before": original})

        converted.__name__ = f"by_this_library_to_{kind}"
        healthy("BN006")(converted)


_kinds()


@healthy("BN006")
def an_activation_that_was_kept() -> Case:
    original = trained(batchnorm.BatchNormAct2d(4, activation="silu"))
    return Case(batchnorm.convert(original, "sync"), batches(), options={"before": original})


@healthy("BN006")
def trained_frozen_and_cast_afterwards() -> Case:
    original = trained(nn.BatchNorm2d(4))
    model = by_torch(original)
    for batch in batches():
        model(3 * batch)
    model = model.double().requires_grad_(False).eval()
    return Case(model, options={"before": original})


@healthy("BN006")
def an_activation_inside_that_is_called() -> Case:
    return Case(trained(NormAct(4)), batches())


@healthy("BN006")
def in_evaluation_mode_by_hand() -> Case:
    model = by_torch(trained(nn.BatchNorm2d(4)))
    model.norm.eval()
    return Case(model)


@healthy("BN006")
def a_module_inside_that_a_hook_calls() -> Case:
    """As quantization observes."""
    model = trained(nn.BatchNorm2d(4))
    model.norm.observer = nn.ReLU()
    model.norm.register_forward_hook(lambda layer, _, output: layer.observer(output))
    return Case(model, batches())


class Double(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@healthy("BN006")
def parametrized() -> Case:
    model = trained(nn.BatchNorm2d(4))
    nn.utils.parametrize.register_parametrization(model.norm, "weight", Double())
    return Case(model, batches())
