"""Stale statistics."""

from copy import deepcopy

import torch
from torch import Tensor, nn

import batchnorm
from doctor.own_forward import FrozenByForward, ScaleAndShift
from doctor.plant import Case, healthy, planted


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU()),
        *(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 2)),
    )


def batches(count: int = 8, samples: int = 64) -> list[tuple[Tensor, Tensor]]:
    drawn = [torch.randn(samples, 6) + 1 for _ in range(count)]
    return [(input, (input[:, 0] > 1).long()) for input in drawn]


def train(model: nn.Module, data: list[tuple[Tensor, Tensor]], epochs: int, rate: float = 0.05) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    for input, target in epochs * data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(input), target).backward()
        optimizer.step()
    return model


@planted("BN001", "1", "4")
def averaged_weights_with_the_last_ones_statistics() -> Case:
    # The moving average of weights, and the buffers as they were when it began.
    data = batches()
    model = train(network(), data, 1)
    average = deepcopy(model)
    train(model, data, 20, 0.3)
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(weight, 0.9)
    return Case(average, data, nn.functional.cross_entropy)


@planted("BN001", "1", "4")
def momentum_too_small_for_the_steps() -> Case:
    model = network()
    model[1].momentum = model[4].momentum = 0.001
    data = [(5 * input, target) for input, target in batches()]
    return Case(train(model, data, 8), data)


@planted("BN001", "1")
def data_that_are_scaled_otherwise() -> Case:
    data = batches()
    return Case(train(network(), data, 12), _scaled(data))


@planted("BN001", "1", "4")
def statistics_of_another_seed() -> Case:
    data = batches()
    model, other = train(network(), data, 12), train(network(), data, 12)
    for name, buffer in model.named_buffers():
        buffer.copy_(other.get_buffer(name))
    return Case(model, data, nn.functional.cross_entropy)


class Deep(nn.Module):
    """Each layer's statistics nearly fit; the gain of a layer in evaluation grows with that of the layer before."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(depth))

    def forward(self, input: Tensor) -> Tensor:
        for norm in self.norms:
            input = norm(input)
        return input


@planted("BN001", "")
def little_by_little() -> Case:
    model = Deep(12)
    with torch.no_grad():
        data = [torch.randn(64, 4) for _ in range(8)]
        batchnorm.recalibrate(model, data, order="layer-by-layer")
        for norm in model.norms:
            norm.running_var *= 0.7
    return Case(model, data)


@healthy("BN001")
def trained_with_momentum() -> Case:
    data = batches()
    return Case(train(network(), data, 12), data, nn.functional.cross_entropy)


@healthy("BN001")
def few_samples_of_the_right_data() -> Case:
    model = train(network(), batches(), 12)
    return Case(model, batches(2, 3))


@healthy("BN001")
def averaged_and_taken_anew() -> Case:
    case = averaged_weights_with_the_last_ones_statistics()
    batchnorm.recalibrate(case.model, case.batches)
    return case


@healthy("BN001")
def frozen_on_other_data() -> Case:
    # Training goes by the same statistics.
    case = data_that_are_scaled_otherwise()
    batchnorm.freeze(case.model)
    return case


@healthy("BN001")
def frozen_by_a_forward_of_its_own() -> Case:
    model = nn.Sequential(FrozenByForward.trained(3), nn.ReLU(), ScaleAndShift.trained(3))
    return Case(model, [torch.randn(64, 3, 8, 8) for _ in range(4)])


@healthy("BN002")
@healthy("BN015")
def frozen_by_a_forward_of_its_own_and_shared() -> Case:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = FrozenByForward.trained(3), ScaleAndShift.trained(3)

        def forward(self, input: Tensor) -> Tensor:
            return self.second(self.first(input)) + self.second(self.first(3 * input[..., ::2] + 2)).mean()

    return Case(Twice().requires_grad_(False), [torch.randn(64, 3, 8, 8, requires_grad=True) for _ in range(4)])


@planted("BN001", "1")
def before_one_that_is_frozen_by_a_forward_of_its_own() -> Case:
    # The mend leaves that one as it is.
    data = batches()
    model = train(network(), data, 12)
    return Case(model.append(nn.Unflatten(1, (2, 1, 1))).append(FrozenByForward.trained(2)), _scaled(data))


def _scaled(data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [255 * input for input, _ in data]


@healthy("BN001")
def in_evaluation_mode_while_the_rest_trains() -> Case:
    case = data_that_are_scaled_otherwise()
    case.model[1].eval()
    return case


@healthy("BN001")
def new_and_never_trained() -> Case:
    return Case(network(), batches(), nn.functional.cross_entropy)


@healthy("BN001")
def unshuffled_batches() -> Case:
    # Each batch has another mean; together they are the data.
    data = [torch.randn(64, 6) + 2 * torch.randn(1, 6) for _ in range(8)]
    model = network()
    batchnorm.recalibrate(model, data, order="layer-by-layer")
    return Case(model, data)


@healthy("BN001")
def trained_with_dropout() -> Case:
    data = batches()
    model = nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 8), nn.BatchNorm1d(8)
    )
    return Case(train(nn.Sequential(*model, nn.Linear(8, 2)), data, 12), data)


@healthy("BN001")
def taken_anew_behind_dropout() -> Case:
    # In training dropout gives another variance; evaluation, which the statistics are for, does not have it.
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.8), nn.Linear(12, 8), nn.BatchNorm1d(8))
    data = batches()
    batchnorm.recalibrate(model, data)
    return Case(model, data)
