import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.study import StudyError
from batchnorm.study.arms import ARMS, Shift, derive, groups_for, norms


class Shared(nn.Module):
    """One norm at two places, one without affine, and convolutions with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, bias=False), nn.Conv2d(8, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.again = self.norm
        self.plain = batchnorm.BatchNorm2d(8, affine=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.plain(self.again(self.second(x)).relu())
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_takes_images_and_shares_the_parameters(arm: str) -> None:
    torch.manual_seed(0)
    model = Shared()
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 2)
        model.norm.bias.normal_()
    kept = {id(parameter) for parameter in model.parameters()}
    made = derive(model, arm)
    assert {id(parameter) for parameter in made.parameters()} <= kept
    assert made.norm is made.again
    assert made(torch.randn(4, 1, 9, 9)).shape == (4, 3)
    left = [type(norm).__name__ for norm in norms(made).values()]
    assert (
        left
        == {
            "none": [],
            "group": [],
            "batch": ["BatchNorm2d"] * 2,
            "ghost": ["GhostBatchNorm2d"] * 2,
            "renorm": ["BatchRenorm2d"] * 2,
            "frozen": ["FrozenBatchNorm2d"] * 2,
        }[arm]
    )


def test_none_is_the_bias_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    with torch.no_grad():
        model[0].weight.fill_(7.0)
        model[0].bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    made = derive(model, "none")
    assert isinstance(made[0], Shift)
    for x in (torch.randn(5, 3), torch.randn(5, 3, 4)):
        shift = torch.tensor([1.0, 2.0, 3.0]).reshape(-1, *[1] * (x.dim() - 2))
        assert torch.equal(made(x), x + shift)
    assert isinstance(derive(nn.Sequential(nn.BatchNorm1d(3, affine=False)), "none")[0], nn.Identity)


def test_group_is_torchs_with_the_norms_parameters() -> None:
    norm = batchnorm.BatchNorm2d(24, eps=1e-3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x = torch.randn(2, 24, 5, 5)
    group = derive(norm, "group")
    expected = nn.functional.group_norm(x, 6, norm.weight, norm.bias, 1e-3)
    assert torch.equal(group(x), expected)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (128, 32), (64, 16), (24, 6), (10, 2), (3, 1), (7, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert groups_for(channels) == groups


def test_ghost_takes_its_size() -> None:
    made = derive(nn.Sequential(nn.BatchNorm1d(3)), "ghost", ghost_size=4)
    assert made[0].ghost_size == 4


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(StudyError, match="arm is one of none, group, batch"):
        derive(nn.BatchNorm1d(3), "layer")
    with pytest.raises(StudyError, match=r"no arm 'frozen'.*0 \(BatchNorm1d\)"):
        derive(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), "frozen")
    for arm in ("none", "group"):
        with pytest.raises(StudyError, match=r"the norm 0 \(BatchNormAct2d\) has an activation of its own"):
            derive(nn.Sequential(batchnorm.BatchNormAct2d(8)), arm)
