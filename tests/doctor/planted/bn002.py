"""Freezes that thaw."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from doctor.own_forward import FrozenByForward
from doctor.plant import Case, healthy, planted


def backbone() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    nn.init.normal_(model[1].bias)
    for _ in range(3):
        model(torch.randn(8, 3, 8, 8))
    return model


class Network(nn.Module):
    """A backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.backbone(input))


def batches() -> list[Tensor]:
    return [torch.randn(8, 3, 8, 8) for _ in range(2)]


@planted("BN002", "backbone.1")
def backbone_without_gradients() -> Case:
    model = Network()
    model.backbone.requires_grad_(False)
    return Case(model, batches())


@planted("BN002", "backbone.1")
def gamma_and_beta_without_gradients() -> Case:
    # The convolution goes on training.
    model = Network()
    model.backbone[1].requires_grad_(False)
    return Case(model)


@planted("BN002", "backbone.1")
def backbone_in_evaluation_mode() -> Case:
    model = Network()
    model.backbone.eval()
    return Case(model, batches())


@planted("BN002", "backbone.1")
def without_gamma_and_beta() -> Case:
    model = Network()
    model.backbone[1] = nn.BatchNorm2d(4, affine=False)
    model.backbone.requires_grad_(False)
    for batch in batches():
        model(batch)
    return Case(model, batches())


@planted("BN002", "1")
def a_whole_model_fixed_but_in_training_mode() -> Case:
    return Case(backbone().requires_grad_(False), batches())


class WithoutGradient(Network):
    def forward(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.backbone(input)
        return self.head(hidden)


@planted("BN002", "backbone.1")
def backbone_under_no_grad() -> Case:
    return Case(WithoutGradient(), batches())


@planted("BN002", "backbone.1")
def an_optimizer_of_the_head() -> Case:
    model = Network()
    return Case(model, batches(), optimizer=torch.optim.SGD(model.head.parameters(), 0.1))


@healthy("BN002")
def an_optimizer_of_all_and_a_checkpoint() -> Case:
    class Checkpointed(Network):
        def forward(self, input: Tensor) -> Tensor:
            return self.head(checkpoint(self.backbone[1:], self.backbone[0](input), use_reentrant=True))

    model = Checkpointed()
    return Case(model, batches(), optimizer=torch.optim.SGD(model.parameters(), 0.1))


@healthy("BN002")
def a_moving_average_under_no_grad_with_an_optimizer_of_the_other() -> Case:
    model = Momentum()
    model.key.requires_grad_(True)
    return Case(model, batches(), optimizer=torch.optim.SGD(model.query.parameters(), 0.1))


@healthy("BN002")
def frozen_by_a_forward_of_its_own_without_batches() -> Case:
    model = nn.Sequential(FrozenByForward.trained(3), nn.Conv2d(3, 4, 3))
    model[0].requires_grad_(False)
    return Case(model)


@healthy("BN002")
def frozen() -> Case:
    model = Network()
    batchnorm.freeze(model, where=lambda path, _: path.startswith("backbone"), affine=True)
    return Case(model, batches())


@healthy("BN002")
def frozen_without_batches() -> Case:
    return Case(frozen().model)


@healthy("BN002")
def momentum_0() -> Case:
    model = Network()
    model.backbone.requires_grad_(False)
    model.backbone[1].momentum = 0.0
    return Case(model)


@healthy("BN002")
def of_a_frozen_class() -> Case:
    model = Network()
    model.backbone = batchnorm.convert(model.backbone, "frozen").requires_grad_(False)
    return Case(model, batches())


@healthy("BN002")
def deployed() -> Case:
    return Case(Network().eval().requires_grad_(False), batches())


class Keeping(Network):
    """Keeps its backbone as it is meant to be."""

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.backbone.eval()
        return self


@healthy("BN002")
def a_train_that_keeps_the_backbone() -> Case:
    model = Keeping()
    model.backbone.requires_grad_(False)
    return Case(model, batches())


@healthy("BN002")
def a_train_that_keeps_the_backbone_without_batches() -> Case:
    model = Keeping()
    model.backbone.requires_grad_(False)
    return Case(model.train())


@healthy("BN002")
def a_train_that_keeps_the_backbone_and_is_still_to_be_called() -> Case:
    model = Keeping()
    model.backbone.requires_grad_(False)
    return Case(model)


@healthy("BN002")
def fixed_as_if_without_gamma_and_beta() -> Case:
    model = Network()
    model.head[1].requires_grad_(False)
    return Case(model, batches())


class Momentum(nn.Module):
    """A network and the moving average of its weights, which has statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = Network(), Network().requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            key = self.key(input)
        return self.query(input) * key


@healthy("BN002")
def the_target_of_a_moving_average() -> Case:
    return Case(Momentum(), batches())


@healthy("BN002")
def training_as_ever() -> Case:
    return Case(Network(), batches())
