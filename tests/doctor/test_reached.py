"""What a loss or a forward= holds is found, and comes back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchnorm import diagnose
from batchnorm.doctor.reached import reached_by
from doctor.pictures import picture

HELD = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
SCALE = torch.ones(1, requires_grad=True)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


class Center(nn.Module):
    """A loss that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.center, self.norm = nn.Parameter(torch.zeros(3)), nn.BatchNorm1d(3)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (self.norm(output) - self.center).square().mean()


class Trainer:
    """Plain, with modules in attributes and containers."""

    def __init__(self) -> None:
        self.parts = {"judge": [HELD]}

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.parts["judge"][0](output).mean()

    __call__ = loss


def by_a_global(output: Tensor, target: Tensor) -> Tensor:
    return (HELD(output) * SCALE).mean()


def by_another_function(output: Tensor, target: Tensor) -> Tensor:
    return sum(by_a_global(part, target) for part in (output,))


def by_argument(judge: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    return judge(output).mean()


def by_default(output: Tensor, target: Tensor, judge: nn.Module = HELD) -> Tensor:
    return judge(output).mean()


def in_a_closure() -> Callable[[Tensor, Tensor], Tensor]:
    judge = HELD
    later = lambda: judge  # noqa: E731 - a closure in a closure
    return lambda output, target: later()(output).mean()


LOSSES = [
    *(by_a_global, by_another_function, by_default, in_a_closure(), Trainer(), Trainer().loss, HELD.forward),
    functools.partial(by_argument, HELD),
    functools.wraps(by_a_global)(lambda *_: torch.zeros(())),  # a decorator's
]


@pytest.mark.parametrize("loss", LOSSES, ids=range(len(LOSSES)))
def test_where_a_module_may_be(loss: Any) -> None:
    assert any(each is HELD for each in reached_by(None, loss))


@pytest.mark.parametrize("loss", [*LOSSES[:6], LOSSES[7]], ids=[*range(6), 7])
def test_what_a_loss_holds_comes_back(loss: Any) -> None:
    model = network()
    HELD[0].weight.grad = torch.full((8, 3), 7.0)
    before = picture(model), picture(HELD), SCALE.grad
    pairs = [(torch.randn(32, 4), torch.zeros(32)) for _ in range(2)]
    evidence = diagnose(model, batches=pairs, loss=loss, select=["BN001", "BN027"]).evidence
    assert len(evidence.training.losses) == 2
    assert (picture(model), picture(HELD), SCALE.grad) == before


def test_a_loss_that_is_a_module() -> None:
    loss = Center()
    before = picture(loss)
    pairs = [(torch.randn(32, 4), torch.zeros(32)) for _ in range(2)]
    assert diagnose(network(), batches=pairs, loss=loss, select=["BN001"]).evidence.training.losses
    assert picture(loss) == before


def test_a_discriminator_that_forward_calls_and_a_mend_as_well() -> None:
    model, batches = network(), [torch.randn(64, 4) + 3 for _ in range(4)]
    model[1].running_var[0] = torch.nan
    before = picture(HELD)
    diagnosis = diagnose(model, batches=batches, forward=lambda model, batch: HELD(model(batch)), select=["BN004"])
    assert picture(HELD) == before
    HELD[1].running_mean[0] = 1.0
    before = picture(HELD)
    assert len(diagnosis.fix()) == 1
    assert picture(HELD) == before


def test_what_is_far_away_or_many_is_data() -> None:
    far: Any = HELD
    for _ in range(6):
        far = [far]
    assert reached_by(lambda: far) == []
    many = [HELD] * 2000
    assert reached_by(lambda: many) == []
    assert reached_by(lambda: undefined) == []  # type: ignore[name-defined] # noqa: F821
    assert reached_by(torch.nn.functional.cross_entropy, print, None) == []
