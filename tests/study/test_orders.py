import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d
from batchnorm.study import StudyError
from batchnorm.study.apparatus.orders import neighbours, ordered
from batchnorm.study.networks import fully_connected


class Block(nn.Module):
    """A residual block: one pair, and one norm whose activation comes behind a sum."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.act1, self.act2 = nn.ReLU(inplace), nn.ReLU(inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))) + x)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_pair_is_exchanged_and_what_is_none_stays(inplace: bool) -> None:
    torch.manual_seed(0)
    model, x = Block(inplace).eval(), torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        model.bn1.running_mean.normal_()
        model.bn1.bias.normal_()
    assert neighbours(model, x).pairs == (("bn1", "act1"),)
    norm = model.bn1
    expected = (model.bn2(model.conv2(norm(model.conv1(x).relu()))) + x).relu()
    assert not torch.allclose(model(x), expected)
    assert ordered(model, x, "before") is model
    assert model.bn1 is norm
    exchanged = ordered(model, x, "after")
    assert torch.allclose(exchanged(x), expected)
    assert neighbours(exchanged, x).order == "after"
    assert ordered(exchanged, x, "before").bn1 is norm


def test_it_makes_the_studys_own_networks() -> None:
    x = torch.randn(6, 5)
    for order in ("before", "after"):
        wanted = fully_connected((5, 7, 8, 3), activation="sigmoid", norm=order, seed=1).train()
        for given in ("before", "after"):
            model = fully_connected((5, 7, 8, 3), activation="sigmoid", norm=given, seed=1).train()
            assert torch.equal(ordered(model, x, order)(x), wanted(x))
            assert model.training


def test_modules_called_twice_or_standing_twice_are_left() -> None:
    act = nn.ReLU()
    with pytest.raises(StudyError, match="no batch norm with an activation directly beside it"):
        neighbours(nn.Sequential(BatchNorm1d(3), act, nn.Linear(3, 3), BatchNorm1d(3), act), torch.randn(2, 3))
    with pytest.raises(StudyError, match="no batch norm"):
        neighbours(nn.Sequential(nn.Linear(3, 3), BatchNorm1d(3), nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3))
    # An activation in place hands on the norm's own output, which is not beside the next activation.
    model = nn.Sequential(BatchNorm1d(3), nn.ReLU(inplace=True), nn.Sigmoid())
    assert neighbours(model, torch.randn(2, 3)).pairs == (("0", "1"),)


def test_the_model_is_looked_at_without_a_trace() -> None:
    model = Block(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    neighbours(model.train(), torch.randn(3, 4, 6, 6))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Named(nn.Module):
    """The norm and the activation get their input by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.active = BatchNorm1d(3), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.active(input=self.norm(input=x))


def test_a_pair_that_gets_its_input_by_keyword_is_found_and_exchanged() -> None:
    model, x = Named(), torch.randn(5, 3)
    assert neighbours(model, x).pairs == (("norm", "active"),)
    norm = model.norm
    assert torch.equal(ordered(model, x, "after").eval()(x), norm.eval()(x.relu()))
