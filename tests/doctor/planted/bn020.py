"""Channels that give the same whatever they are given."""

import torch
from torch import Tensor, nn

import batchnorm
from doctor.plant import Case, healthy, planted


def network(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1)),
    )


def batches() -> list[Tensor]:
    return [torch.randn(8, 3, 12, 12) for _ in range(3)]


@planted("BN020", "4")
def decayed_gammas() -> Case:
    model = network()
    nn.init.uniform_(model[4].weight, 0.5, 1.5)
    model[4].weight.data[:3] *= 1e-6
    return Case(model, batches())


@planted("BN020", "1")
def decayed_gammas_in_a_checkpoint() -> Case:
    model = network(64)
    model[1].weight.data[5] = 0.0
    return Case(model.state_dict())


@planted("BN020", "1")
def a_dead_filter() -> Case:
    model = network()
    nn.init.zeros_(model[0].weight[2])
    return Case(model, batches())


@planted("BN020", "3")
def relus_that_never_fire() -> Case:
    """A norm behind the activation, which gets nothing but zeros in most channels."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Identity(), nn.BatchNorm2d(8))
    nn.init.constant_(model[0].bias[2:], -50.0)
    return Case(model, batches())


@planted("BN020", "1", "4")
def all_gammas_are_zero() -> Case:
    model = network()
    nn.init.zeros_(model[1].weight)
    return Case(model, batches())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.1))
        nn.init.zeros_(self.branch[1].weight)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.stem(input)
        return torch.relu(hidden + self.branch(hidden))


@healthy("BN020")
def a_residual_branch_that_begins_at_zero() -> Case:
    return Case(Residual(), batches())


class Apart(nn.Module):
    """The branch goes on behind its norm, and is added in ways of its own."""

    def __init__(self, tail: nn.Module, add=torch.add) -> None:
        super().__init__()
        self.branch, self.tail, self.add = Residual(), tail, add

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.branch.stem(input)
        return torch.relu(self.add(hidden, self.tail(self.branch.branch(hidden))))


class Shuffled(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        first, second = input.chunk(2, 1)
        return torch.where(input > -9, torch.cat([second, first], 1), torch.zeros_like(input))


@healthy("BN020")
def residual_branches_that_go_on() -> Case:
    tails = nn.Dropout2d(0.1), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1), Shuffled(), nn.Conv2d(8, 8, 1, bias=False)
    upsampled = nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2))
    model = nn.Sequential(*(nn.Sequential(Apart(tail), nn.Conv2d(8, 3, 1)) for tail in (*tails, upsampled)))
    return Case(model, [torch.randn(8, 3, 16, 16) for _ in range(3)])


@healthy("BN020")
def residual_branches_that_are_not_simply_added() -> Case:
    sums = (
        *(lambda x, y: torch.stack((x, y)).sum(0), lambda x, y: torch.lerp(x, y, 0.5)),
        *(lambda x, y: x.addcmul(y, y), lambda x, y: x.relu().add_(y)),
    )
    model = nn.Sequential(*(nn.Sequential(Apart(nn.Identity(), add), nn.Conv2d(8, 3, 1)) for add in sums))
    return Case(model, [torch.randn(8, 3, 14, 14) for _ in range(3)])


@planted("BN020", "0.branch.branch.1")
def what_is_added_is_no_data_or_its_own() -> Case:
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(8, 1, 1))

        def forward(self, input: Tensor) -> Tensor:
            return input + self.position + input.mean()

    return Case(nn.Sequential(Apart(Position(), lambda _, y: y), nn.Conv2d(8, 2, 1)), batches())


@planted("BN020", "branch.1", "branch.4")
def within_a_residual_branch() -> Case:
    """Behind it comes another norm, whose input is constant then."""
    model = Residual()
    model.branch = nn.Sequential(*model.branch[:2], nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    return Case(model, batches())


@healthy("BN020")
def one_of_our_layers_that_adds_it() -> Case:
    class Fused(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.norm = batchnorm.BatchNormAct2d(8)
            nn.init.zeros_(self.norm.weight)

        def forward(self, input: Tensor) -> Tensor:
            hidden = self.stem(input)
            return self.norm(self.branch[0](hidden), residual=hidden)

    model = Fused()
    del model.branch[1]
    return Case(model, batches())


@healthy("BN020")
def and_after_some_steps() -> Case:
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for batch in batches():
        model(batch).square().mean().backward()
        optimizer.step()
    return Case(model, batches())


@healthy("BN020")
def without_batches_nobody_knows() -> Case:
    return Case(Residual().state_dict())


@healthy("BN020")
def rare_features() -> Case:
    """In so few samples it is no wonder that some words do not occur."""
    words = [(torch.rand(32, 200) < 0.01).float() for _ in range(2)]
    return Case(nn.Sequential(nn.BatchNorm1d(200), nn.Linear(200, 2)), words)


@healthy("BN020")
def small_but_all_alike() -> Case:
    model = network()
    nn.init.constant_(model[1].weight, 1e-5)
    return Case(model, batches())


@healthy("BN020")
def without_gamma() -> Case:
    return Case(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)), batches())
